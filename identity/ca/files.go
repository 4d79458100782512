package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// File names. Those of the plugged-in authority are Istio's.
const (
	rootKeyFile   = "root-key.pem"
	rootCertFile  = "root-cert.pem"
	caKeyFile     = "ca-key.pem"
	caCertFile    = "ca-cert.pem"
	certChainFile = "cert-chain.pem"
)

// fileMaxBytes bounds what is read from any of them.
const fileMaxBytes = 1 << 20

// openOwn loads the root kept in dir, and makes key and certificate if they
// are not there yet. Two processes that start at once end up with the same
// root: files appear whole, and the first to appear stays.
func openOwn(dir, trustDomain string, now time.Time) (*signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := checkMode(dir, 0o077, "chmod 0700"); err != nil {
		return nil, err
	}
	keyPath, certPath := filepath.Join(dir, rootKeyFile), filepath.Join(dir, rootCertFile)
	key, err := openOwnKey(keyPath, certPath)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(certPath); errors.Is(err, fs.ErrNotExist) {
		der, err := selfSign(key, trustDomain, now)
		if err != nil {
			return nil, err
		}
		if err := createOnce(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
			return nil, fmt.Errorf("keep root certificate: %w", err)
		}
	}
	roots, err := readCertificates(certPath)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(roots, func(r *x509.Certificate) bool { return samePublicKey(r.PublicKey, key.Public()) })
	if i < 0 {
		return nil, fmt.Errorf("none of the roots in %s belongs to the key in %s; restore the pair from a backup", certPath, keyPath)
	}
	return &signer{cert: roots[i], key: key, roots: roots}, nil
}

// openOwnKey loads the root key, and makes one if there is neither key nor
// certificate.
func openOwnKey(keyPath, certPath string) (crypto.Signer, error) {
	if _, err := os.Stat(keyPath); errors.Is(err, fs.ErrNotExist) {
		// The certificate is made after the key and from it, so a
		// certificate alone means that the key has been lost.
		if _, err := os.Stat(certPath); err == nil {
			if _, err := os.Stat(keyPath); errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s is there but its key %s is not; restore the key, or remove the certificate too and give every workload the new root", certPath, keyPath)
			}
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make root key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode root key: %w", err)
		}
		if err := createOnce(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return nil, fmt.Errorf("keep root key: %w", err)
		}
	}
	if err := checkMode(keyPath, 0o077, "chmod 0600"); err != nil {
		return nil, err
	}
	return readKey(keyPath)
}

// selfSign makes the root certificate, ECDSA P-256 and ten years like Istio's
// own root but for the key type.
func selfSign(key crypto.Signer, trustDomain string, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: "Lateen root of " + shorten(trustDomain)},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root certificate: %w", err)
	}
	return der, nil
}

// shorten keeps a common name within the 64 characters of RFC 5280 appendix A.
func shorten(trustDomain string) string {
	const most = 64 - len("Lateen root of ")
	return trustDomain[:min(len(trustDomain), most)]
}

// openPlugged loads an authority that somebody else made.
func openPlugged(dir string) (*signer, error) {
	key, err := readKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	certs, err := readCertificates(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, err
	}
	roots, err := readCertificates(filepath.Join(dir, rootCertFile))
	if err != nil {
		return nil, err
	}
	above, err := readCertificates(filepath.Join(dir, certChainFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// cert-chain.pem usually repeats ca-cert.pem and often ends with the
	// root. What is shown to peers is each certificate once, without roots.
	var chain []*x509.Certificate
	for _, c := range slices.Concat(certs, above) {
		if !isRoot(c) && !slices.ContainsFunc(chain, c.Equal) {
			chain = append(chain, c)
		}
	}
	return &signer{cert: certs[0], key: key, chain: chain, roots: roots}, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read certificates in %s: %w", path, err)
	}
	return certs, nil
}

// readKey reads a private key in any of the three PEM forms that OpenSSL
// writes. Errors never quote the contents.
func readKey(path string) (crypto.Signer, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key
		block, text = pem.Decode(text)
	}
	if block == nil {
		return nil, fmt.Errorf("read key in %s: no PEM block found", path)
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("a PEM block of type %q where an unencrypted PRIVATE KEY was expected", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("read key in %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read key in %s: a key of type %T cannot sign", path, key)
	}
	return signer, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileMaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > fileMaxBytes {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, fileMaxBytes)
	}
	return text, nil
}

// checkMode refuses a path that others than its owner may use.
func checkMode(path string, forbidden fs.FileMode, remedy string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%s has mode %#o, so others than its owner can get at the root key; run %s %s", path, mode, remedy, path)
	}
	return nil
}

// createOnce writes a file that appears whole or not at all. If the file is
// there already it stays as it is, and that is no error.
func createOnce(path string, contents []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(contents)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
