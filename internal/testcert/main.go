// Command testcert writes an authority's certificate, and certificates of a server on 127.0.0.1 and
// of a client by it, for the brokers that scripts/brokers starts: ca.pem, server.pem, server.key,
// client.pem, client.key and, in one file, server-all.pem. It changes nothing in a folder that has
// them.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: testcert FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "testcert:", err)
		os.Exit(1)
	}
}

func write(folder string) error {
	last := filepath.Join(folder, "client.pem")
	if _, err := os.Stat(last); err == nil {
		return nil
	}
	authority, err := issue("millrace tests", nil)
	if err != nil {
		return err
	}
	server, err := issue("millrace-server", authority)
	if err != nil {
		return err
	}
	client, err := issue("millrace-client", authority) // the name of a user of PostgreSQL, in tests
	if err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(folder, 0o755),
		os.WriteFile(filepath.Join(folder, "ca.pem"), authority.pem, 0o600),
		os.WriteFile(filepath.Join(folder, "server.pem"), server.pem, 0o600),
		os.WriteFile(filepath.Join(folder, "server.key"), server.key, 0o600),
		os.WriteFile(filepath.Join(folder, "server-all.pem"), append(server.key, server.pem...), 0o600),
		os.WriteFile(filepath.Join(folder, "client.key"), client.key, 0o600),
		os.WriteFile(last, client.pem, 0o600),
	)
}

// issued is a certificate with its key.
type issued struct {
	certificate *x509.Certificate
	private     *ecdsa.PrivateKey
	pem, key    []byte
}

// issue makes a certificate by an authority, or without one, an authority's own.
func issue(name string, by *issued) (*issued, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:     []string{"localhost"},
	}
	parent, signer := template, private
	if by == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		template.IPAddresses, template.DNSNames, template.ExtKeyUsage = nil, nil, nil
	} else {
		parent, signer = by.certificate, by.private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	return &issued{
		certificate: certificate,
		private:     private,
		pem:         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}, nil
}
