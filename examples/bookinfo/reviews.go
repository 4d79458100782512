package main

import (
	"net/http"
	"strconv"
)

// ratingsDown is what a review says in place of stars when ratings failed.
const ratingsDown = "Ratings service is currently unavailable"

// reviewSet is the answer of the reviews service.
type reviewSet struct {
	// ID is the product's id; a string here and a number in ratings, as in Istio's Bookinfo.
	ID      string   `json:"id"`
	Pod     string   `json:"podname"`
	Cluster string   `json:"clustername"`
	Reviews []review `json:"reviews"`
}

// review is one reader's opinion.
type review struct {
	Reviewer string `json:"reviewer"`
	Text     string `json:"text"`
	// Rating is nil in v1, which knows no stars.
	Rating *rating `json:"rating,omitempty"`
}

// rating is a number of stars, or the reason why there is none.
type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

// ratingSet is the answer of the ratings service: stars by reviewer.
type ratingSet struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

// serveReviews answers with the two reviews of the book, in v2 and v3 with stars.
func (s *Server) serveReviews(w http.ResponseWriter, r *http.Request) {
	v := s.newVisit(r)
	id, ok := v.productID(w, r)
	if !ok {
		return
	}
	set := reviewSet{ID: strconv.Itoa(id), Pod: s.cfg.Pod, Cluster: s.cfg.Cluster, Reviews: []review{
		{Reviewer: "Reviewer1", Text: "Two pairs of twins, one harbour town and a single afternoon of mistaken identity. " +
			"I laughed on every second page, and the last scene is kinder than it has any need to be."},
		{Reviewer: "Reviewer2", Text: "A farce that runs like clockwork. Nobody in it grows wiser, " +
			"and that costs it a star, but few plays waste so little of your evening."},
	}}
	if color := starColor(s.cfg.Version); color != "" {
		s.addStars(v, id, color, set.Reviews)
	}
	v.writeJSON(w, http.StatusOK, set)
}

// starColor is the color of a version's stars; empty when the version has none.
func starColor(version string) string {
	switch version {
	case "v2":
		return "black"
	case "v3":
		return "red"
	}
	return ""
}

// addStars asks ratings once and gives each review its stars, or the reason why it has none.
func (s *Server) addStars(v *visit, id int, color string, reviews []review) {
	var set ratingSet
	c := v.get(ratings, s.cfg.Ratings, id, s.cfg.RatingsTimeout, &set)
	for i := range reviews {
		stars, rated := set.Ratings[reviews[i].Reviewer]
		switch {
		case c.Failure != "":
			reviews[i].Rating = &rating{Error: ratingsDown}
		case !rated:
			reviews[i].Rating = &rating{Error: "Not rated by this reader"}
		default:
			reviews[i].Rating = &rating{Stars: stars, Color: color}
		}
	}
}
