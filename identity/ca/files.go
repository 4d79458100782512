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
	"time"
)

// openOwn reads the root kept in dir, and makes key and certificate if they
// are not there yet. Two processes that start at once end up with the same
// root: files appear whole, and the first to appear stays.
func openOwn(dir, trustDomain string, now time.Time) (Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := checkMode(dir, 0o077, "chmod 0700"); err != nil {
		return nil, err
	}
	keyPath, certPath := filepath.Join(dir, rootKeyFile), filepath.Join(dir, rootCertFile)
	if err := makeOwnKey(keyPath, certPath); err != nil {
		return nil, err
	}
	keys := Keys{}
	var err error
	if keys[rootKeyFile], err = readFile(keyPath); err != nil {
		return nil, err
	}
	if _, err := os.Stat(certPath); errors.Is(err, fs.ErrNotExist) {
		key, err := keys.key(rootKeyFile)
		if err != nil {
			return nil, err
		}
		cert, err := selfSign(key, trustDomain, now)
		if err != nil {
			return nil, err
		}
		if err := createOnce(certPath, cert, 0o644); err != nil {
			return nil, fmt.Errorf("keep root certificate: %w", err)
		}
	}
	if keys[rootCertFile], err = readFile(certPath); err != nil {
		return nil, err
	}
	return keys, nil
}

// makeOwnKey makes a root key if there is neither key nor certificate.
func makeOwnKey(keyPath, certPath string) error {
	if _, err := os.Stat(keyPath); errors.Is(err, fs.ErrNotExist) {
		// The certificate is made after the key and from it, so a
		// certificate alone means that the key has been lost.
		if _, err := os.Stat(certPath); err == nil {
			if _, err := os.Stat(keyPath); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is there but its key %s is not; restore the key, or remove the certificate too and give every workload the new root", certPath, keyPath)
			}
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("make root key: %w", err)
		}
		text, err := encodeKey(key)
		if err != nil {
			return err
		}
		if err := createOnce(keyPath, text, 0o600); err != nil {
			return fmt.Errorf("keep root key: %w", err)
		}
	}
	return checkMode(keyPath, 0o077, "chmod 0600")
}

// selfSign makes a root certificate, as PEM.
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
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// shorten keeps a common name within the 64 characters of RFC 5280 appendix A.
func shorten(trustDomain string) string {
	const most = 64 - len("Lateen root of ")
	return trustDomain[:min(len(trustDomain), most)]
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
