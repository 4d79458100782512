package main

import "net/http"

// bookDetails is what the details service knows of a book.
type bookDetails struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

// serveDetails answers with the details of the sample's one book, whatever its id.
// Publisher and numbers are invented; the ISBNs are well formed and belong to nobody.
func (s *Server) serveDetails(w http.ResponseWriter, r *http.Request) {
	v := s.newVisit(r)
	id, ok := v.productID(w, r)
	if !ok {
		return
	}
	v.writeJSON(w, http.StatusOK, bookDetails{
		ID: id, Author: "William Shakespeare", Year: 1594, Type: "paperback", Pages: 128,
		Publisher: "Two Dromios Press", Language: "English", ISBN10: "0-00-000000-0", ISBN13: "978-0-00-000000-2",
	})
}
