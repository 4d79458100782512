package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	auth "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"

	"github.com/lateen-mesh/lateen/source/kube/claims"
)

// Audience is for whom the token of a workload must be meant: Istio's name of the certificate authority.
const Audience = "istio-ca"

// Bounds of reviews, for which anybody can ask who reaches us. The API server answers them at the cost of all else that
// we want of it.
const (
	tokenMaxBytes = 16 << 10
	reviewTimeout = 10 * time.Second
	// reviewsMax is how many are under way at a time, and reviewsFrom how many of them for one caller. So many more of a
	// caller wait, for reviewsPatience: a mesh that starts at once is served one after another.
	reviewsMax      = 32
	reviewsFrom     = 4
	reviewsWaiting  = 1024
	reviewsPatience = 30 * time.Second
)

// accountPrefix begins the user name of a service account.
const accountPrefix = "system:serviceaccount:"

// Account asks the API server whose token this is (TokenReview): the service account's namespace and name. A token that
// is not meant for Audience, as the one that every pod has for the API server, is refused. from is the address of who
// shows it; many that come from one wait for one another.
func (s *Store) Account(ctx context.Context, from, token string) (namespace, name string, err error) {
	if len(token) > tokenMaxBytes {
		return "", "", fmt.Errorf("the token has %d bytes, more than the %d allowed", len(token), tokenMaxBytes)
	}
	if err := claims.Check(token, Audience, time.Now()); err != nil {
		return "", "", err
	}
	leave, err := s.enter(ctx, from)
	if err != nil {
		return "", "", fmt.Errorf("wait for other tokens to be reviewed: %w", err)
	}
	defer leave()
	ctx, stop := context.WithTimeout(ctx, reviewTimeout)
	defer stop()
	review := &auth.TokenReview{Spec: auth.TokenReviewSpec{Token: token, Audiences: []string{Audience}}}
	answer := &auth.TokenReview{}
	if err := s.api.auth.Post().Resource("tokenreviews").Body(review).Do(ctx).Into(answer); err != nil {
		return "", "", fmt.Errorf("have the token reviewed by the API server: %w", err)
	}
	switch st := answer.Status; {
	case st.Error != "":
		return "", "", fmt.Errorf("the API server refuses the token: %s", st.Error)
	case !st.Authenticated:
		return "", "", fmt.Errorf("the API server does not know the token; mount a projected token with the audience %s", Audience)
	case !slices.Contains(st.Audiences, Audience):
		return "", "", fmt.Errorf("the token is meant for %v; mount a projected token with the audience %s", st.Audiences, Audience)
	}
	user := answer.Status.User.Username
	rest, ok := strings.CutPrefix(user, accountPrefix)
	namespace, name, found := strings.Cut(rest, ":")
	if !ok || !found || namespace == "" || name == "" || strings.Contains(name, ":") {
		return "", "", fmt.Errorf("the token is of %q, which is no service account", user)
	}
	return namespace, name, nil
}

// enter waits until a caller may have the API server asked.
func (s *Store) enter(ctx context.Context, from string) (leave func(), err error) {
	ctx, stop := context.WithTimeout(ctx, reviewsPatience)
	defer stop()
	return s.reviews.Enter(ctx, from)
}

// errSecrets says that a gateway's account may not read the keys that it would be given.
var errSecrets = errors.New("its service account may not read Secrets in its namespace, as a gateway must; bind it to a Role with the verbs get, list and watch on secrets")

// MayReadSecrets asks the API server (SubjectAccessReview) whether a service account may read the Secrets of its
// namespace, which is what a gateway gets from us; the error says why not.
func (s *Store) MayReadSecrets(ctx context.Context, namespace, account string) error {
	leave, err := s.enter(ctx, namespace+"/"+account)
	if err != nil {
		return fmt.Errorf("wait to ask the API server what %s/%s may read: %w", namespace, account, err)
	}
	defer leave()
	ctx, stop := context.WithTimeout(ctx, reviewTimeout)
	defer stop()
	review := &authz.SubjectAccessReview{Spec: authz.SubjectAccessReviewSpec{
		User:               accountPrefix + namespace + ":" + account,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		ResourceAttributes: &authz.ResourceAttributes{Namespace: namespace, Verb: "list", Resource: "secrets"},
	}}
	answer := &authz.SubjectAccessReview{}
	if err := s.api.authz.Post().Resource("subjectaccessreviews").Body(review).Do(ctx).Into(answer); err != nil {
		return fmt.Errorf("ask the API server what %s/%s may read: %w", namespace, account, err)
	}
	if !answer.Status.Allowed {
		return errSecrets
	}
	return nil
}
