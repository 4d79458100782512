package identity

// CacheLen returns how many verdicts a bundle remembers.
func CacheLen(b *Bundle) int {
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	return len(b.cache.young) + len(b.cache.old)
}
