package api

// Unreadable is the Spec of an object that stands for a policy which has faults and no last good version: it denies what
// the policy may have been meant to deny.
type Unreadable struct {
	// Selector picks the workloads that the policy is for; nil: all that its namespace says, which is also so where it
	// could not be read.
	Selector map[string]string
}
