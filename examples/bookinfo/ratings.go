package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"sync"
)

// The limits of what ratings keeps: it holds everything in memory.
const (
	starsMax         = 5
	ratedProductsMax = 1000
	ratersMax        = 100
	raterMaxBytes    = 100
	ratingsMaxBytes  = 64 << 10
)

// ratingBook holds the ratings that were posted; safe for concurrent use.
type ratingBook struct {
	mu        sync.Mutex
	byProduct map[int]map[string]int
}

// of returns the ratings of a product; the sample's own when nobody posted any.
func (b *ratingBook) of(id int) ratingSet {
	b.mu.Lock()
	defer b.mu.Unlock()
	if posted, ok := b.byProduct[id]; ok {
		return ratingSet{ID: id, Ratings: maps.Clone(posted)}
	}
	return ratingSet{ID: id, Ratings: map[string]int{"Reviewer1": 5, "Reviewer2": 4}}
}

// put replaces the ratings of a product; false when the book is full.
func (b *ratingBook) put(id int, ratings map[string]int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.byProduct[id]; !known && len(b.byProduct) >= ratedProductsMax {
		return false
	}
	b.byProduct[id] = maps.Clone(ratings)
	return true
}

// serveRatings answers with the stars that each reviewer gave.
func (s *Server) serveRatings(w http.ResponseWriter, r *http.Request, book *ratingBook) {
	v := s.newVisit(r)
	if id, ok := v.productID(w, r); ok {
		v.writeJSON(w, http.StatusOK, book.of(id))
	}
}

// changeRatings replaces a product's ratings by those of the body,
// {"Reviewer1": 3, …}, and answers as [Server.serveRatings] would.
func (s *Server) changeRatings(w http.ResponseWriter, r *http.Request, book *ratingBook) {
	v := s.newVisit(r)
	id, ok := v.productID(w, r)
	if !ok {
		return
	}
	var posted map[string]int
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, ratingsMaxBytes)).Decode(&posted)
	if err != nil || !validRatings(posted) {
		v.writeFault(w, http.StatusBadRequest, `the body must be ratings of 1 to 5 stars, such as {"Reviewer1": 5, "Reviewer2": 4}`)
		return
	}
	if !book.put(id, posted) {
		v.writeFault(w, http.StatusInsufficientStorage, "too many products have ratings; restart the service to forget them")
		return
	}
	v.writeJSON(w, http.StatusOK, book.of(id))
}

// validRatings says whether ratings can be kept.
func validRatings(ratings map[string]int) bool {
	if len(ratings) == 0 || len(ratings) > ratersMax {
		return false
	}
	for name, stars := range ratings {
		if name == "" || len(name) > raterMaxBytes || stars < 1 || stars > starsMax {
			return false
		}
	}
	return true
}
