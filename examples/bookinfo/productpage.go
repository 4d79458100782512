package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

// userCookie keeps the name of the logged-in user, query-escaped and otherwise
// plain, so that a route can match it ("user=jason"). It proves nothing: the
// sample has no passwords.
const userCookie = "user"

// userMaxBytes bounds a user's name.
const userMaxBytes = 64

// formMaxBytes bounds the login form.
const formMaxBytes = 4 << 10

// reviewTries is how often the page asks for reviews before it gives up.
const reviewTries = 2

// bookID is the id of the book on the page; the sample has only this one.
const bookID = 0

// product is an entry of /api/v1/products.
type product struct {
	ID          int           `json:"id"`
	Title       string        `json:"title"`
	Description template.HTML `json:"descriptionHtml"`
}

// theBook is the sample's one product.
func theBook() product {
	return product{ID: bookID, Title: "The Comedy of Errors", Description: "A merchant lands where he is forbidden to, " +
		"looking for half of his family. Two brothers share one face and one name, and so do their two servants. " +
		"By nightfall a whole town has arrested, scolded, fed and kissed the wrong man. " +
		"It is the shortest play of <b>William Shakespeare</b>, and the one with the fastest doors."}
}

//go:embed templates
var templates embed.FS

//go:embed static
var static embed.FS

// pages are the parsed templates of the product page.
type pages struct {
	home, book *template.Template
}

// parsePages parses the embedded templates.
func parsePages() (pages, error) {
	home, err := template.ParseFS(templates, "templates/layout.html", "templates/home.html")
	if err != nil {
		return pages{}, fmt.Errorf("parse home page: %w", err)
	}
	book, err := template.ParseFS(templates, "templates/layout.html", "templates/book.html")
	if err != nil {
		return pages{}, fmt.Errorf("parse product page: %w", err)
	}
	return pages{home: home, book: book}, nil
}

// routeProductpage adds the product page's paths to mux.
func (s *Server) routeProductpage(mux *http.ServeMux) error {
	p, err := parsePages()
	if err != nil {
		return err
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		s.newPageVisit(r).writePage(w, p.home, bookView{User: user(r)})
	})
	mux.HandleFunc("GET /productpage", func(w http.ResponseWriter, r *http.Request) { s.servePage(w, r, p.book) })
	mux.HandleFunc("POST /login", s.serveLogin)
	mux.HandleFunc("GET /logout", s.serveLogout)
	mux.HandleFunc("GET /static/{file}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		http.ServeFileFS(w, r, static, "static/"+r.PathValue("file"))
	})
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, r *http.Request) {
		s.newPageVisit(r).writeJSON(w, http.StatusOK, []product{theBook()})
	})
	mux.HandleFunc("GET /api/v1/products/{id}", s.passOn(details, s.cfg.Details, 1))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", s.passOn(reviews, s.cfg.Reviews, reviewTries))
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", s.passOn(ratings, s.cfg.Ratings, 1))
	return nil
}

// newPageVisit begins a visit whose calls carry the logged-in user's name. The
// page decides who that is; what the browser says in the header is dropped.
func (s *Server) newPageVisit(r *http.Request) *visit {
	v := s.newVisit(r)
	v.header.Del(userHeader)
	if name := user(r); name != "" {
		v.header.Set(userHeader, name)
	}
	return v
}

// ask calls a backend up to tries times, and ends early when the visitor has left.
func (s *Server) ask(v *visit, service, host string, id, tries int, value any) call {
	var c call
	for range tries {
		c = v.get(service, host, id, s.cfg.PageTimeout, value)
		if c.Failure == "" || v.ctx.Err() != nil {
			break
		}
	}
	return c
}

// servePage answers with the book's page. It has status 200 also when backends
// fail: each part says for itself what it lacks.
func (s *Server) servePage(w http.ResponseWriter, r *http.Request, page *template.Template) {
	v := s.newPageVisit(r)
	view := bookView{User: user(r), Book: theBook()}
	var about bookDetails
	asked := s.ask(v, details, s.cfg.Details, bookID, 1, &about)
	view.setDetails(asked, about)
	var set reviewSet
	asked = s.ask(v, reviews, s.cfg.Reviews, bookID, reviewTries, &set)
	view.setReviews(asked, set)
	view.setSteps(v)
	v.writePage(w, page, view)
}

// writePage answers with a page in HTML.
func (v *visit) writePage(w http.ResponseWriter, page *template.Template, view bookView) {
	var body bytes.Buffer
	if err := page.ExecuteTemplate(&body, "layout.html", view); err != nil {
		v.log.Error("render page", "error", err)
		v.writeFault(w, http.StatusInternalServerError, "the page could not be rendered")
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "+
		"base-uri 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	v.write(w, http.StatusOK, "text/html; charset=utf-8", body.Bytes())
}

// passOn answers with what a backend says, or with its status and a message when it fails.
func (s *Server) passOn(service, host string, tries int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := s.newPageVisit(r)
		id, ok := v.productID(w, r)
		if !ok {
			return
		}
		var body json.RawMessage
		switch c := s.ask(v, service, host, id, tries, &body); c.Failure {
		case "":
			v.writeJSON(w, http.StatusOK, body)
		case refused:
			v.writeFault(w, c.Status, "product "+service+" are currently unavailable")
		default:
			v.writeFault(w, http.StatusInternalServerError, "product "+service+" are currently unavailable")
		}
	}
}

// serveLogin logs the form's user in, by name alone.
func (s *Server) serveLogin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, formMaxBytes)
	name := strings.TrimSpace(r.PostFormValue("username"))
	if !validUser(name) {
		s.newPageVisit(r).writeFault(w, http.StatusBadRequest, "the user name must be 1 to 64 printable ASCII characters")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: userCookie, Value: url.QueryEscape(name), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	http.Redirect(w, r, "/productpage", http.StatusSeeOther)
}

// serveLogout forgets the user.
func (s *Server) serveLogout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{
		Name: userCookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1,
	})
	http.Redirect(w, r, "/productpage", http.StatusSeeOther)
}

// user is the name of the user who is logged in; empty when nobody is.
func user(r *http.Request) string {
	cookie, err := r.Cookie(userCookie)
	if err != nil {
		return ""
	}
	name, err := url.QueryUnescape(cookie.Value)
	if err != nil || !validUser(name) {
		return ""
	}
	return name
}

// validUser says whether a name can travel in a header.
func validUser(name string) bool {
	if name == "" || len(name) > userMaxBytes || name != strings.TrimSpace(name) {
		return false
	}
	return !strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c > '~' })
}
