package driver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus/driver"
)

// pair writes a certificate with a serial number, and its key.
func pair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func params(t *testing.T, rawURL string) *driver.Params {
	t.Helper()
	p, err := driver.ParseParams(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCertificateIsRenewed: the client's certificate is read for each connection.
func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pair(t, cert, key, 1)
	p := params(t, "x://h?ca="+cert+"&cert="+cert+"&key="+key)
	c := p.TLS()
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	if c.RootCAs == nil {
		t.Error("the authority is not used")
	}
	for serial := int64(1); serial <= 2; serial++ {
		pair(t, cert, key, serial)
		got, err := c.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := got.Leaf.SerialNumber.Int64(); n != serial {
			t.Errorf("certificate %d, want %d", n, serial)
		}
	}
}

// TestTransportMistakes: each mistake in what a URL says of TLS and passwords names its parameter.
func TestTransportMistakes(t *testing.T) {
	dir := t.TempDir()
	cert, key, text := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "text")
	pair(t, cert, key, 1)
	write(t, text, "no PEM")
	for query, want := range map[string]string{
		"ca=/nowhere":                  `"ca": open /nowhere`,
		"ca=" + text:                   "holds no PEM certificate",
		"cert=" + cert:                 "cert and key go together",
		"cert=" + text + "&key=" + key: "parameters cert and key",
		"passwordfile=/nowhere":        `"passwordfile": open /nowhere`,
	} {
		p := params(t, "x://user@h?"+query)
		p.TLS()
		p.Password()
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	for rawURL, want := range map[string]string{
		"x://h?passwordfile=" + text:             "needs a user",
		"x://user:secret@h?passwordfile=" + text: "want one of them",
		"x://h?ca=" + cert:                       `"ca" needs TLS: want amqps`,
	} {
		p := params(t, rawURL)
		p.NoTLS("amqps")
		p.Password()
		if err := p.Err(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", rawURL, err, want)
		}
	}
}

// TestPasswordChanges: a password's file is read at each call, without the end of its line.
func TestPasswordChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	write(t, path, " first \r\n")
	p := params(t, "x://user@h?passwordfile="+path)
	password := p.Password()
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" first ", "second"} {
		if got, err := password(); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		write(t, path, "second")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := password(); err == nil {
		t.Error("a file that is gone is an error")
	}
}
