package driver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// TLS reads the parameters ca, cert and key, which name PEM files, and returns a configuration for
// clients:
//
//   - ca: the authorities that the server's certificate must come from, in place of the system's. The file is read once.
//   - cert and key: the client's own certificate. The files are read for each connection, so that a renewed certificate is used without
//     a restart.
//
// Without TLS, call [Params.NoTLS].
func (p *Params) TLS() *tls.Config {
	c, err := tlsConfig(p.Text("ca", ""), p.Text("cert", ""), p.Text("key", ""))
	if err != nil {
		p.Fail("%w", err)
	}
	return c
}

// NoTLS refuses the parameters that [Params.TLS] reads; want says how TLS is asked for.
func (p *Params) NoTLS(want string) {
	for _, name := range []string{"ca", "cert", "key"} {
		if p.Text(name, "") != "" {
			p.Fail("parameter %q needs TLS: want %s", name, want)
		}
	}
}

func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("parameter \"ca\": %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("parameter \"ca\": %s holds no PEM certificate", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, errors.New("parameters cert and key go together")
	}
	if cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("parameters cert and key: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil { // a mistake is an error at the start
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

// Password returns a function that returns the password to connect with: the URL's, or the content
// of the file that the parameter passwordfile names, without the end of its line. The file is read
// at each call, so that a changed password is used without a restart: call the function for each
// connection.
func (p *Params) Password() func() (string, error) {
	path := p.Text("passwordfile", "")
	fixed, given := p.url.User.Password()
	if path == "" {
		return func() (string, error) { return fixed, nil }
	}
	if p.url.User.Username() == "" {
		p.Fail("parameter \"passwordfile\" needs a user in the URL: want scheme://user@host")
	}
	if given {
		p.Fail("the URL has a password and parameter \"passwordfile\": want one of them")
	}
	read := func() (string, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("parameter \"passwordfile\": %w", err)
		}
		return strings.TrimRight(string(text), "\r\n"), nil
	}
	if _, err := read(); err != nil {
		p.Fail("%w", err)
	}
	return read
}

// IsTLSRefusal reports whether err says that client and server cannot agree on TLS: one of them
// does not trust the other's certificate, or does not speak TLS. It lasts until somebody changes
// the settings, or renews a certificate.
func IsTLSRefusal(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "remote error" // an alert of the server
}
