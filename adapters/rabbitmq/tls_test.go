package rabbitmq

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// tlsEndpoint ends TLS in front of the broker, and returns the URL, and the file of its
// certificate.
func tlsEndpoint(t *testing.T) (rawURL, ca string) {
	t.Helper()
	u, err := url.Parse(brokertest.URL(t, "rabbitmq"))
	if err != nil {
		t.Fatal(err)
	}
	target := u.Host
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var workers sync.WaitGroup
	workers.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				workers.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		workers.Wait()
	})
	u.Scheme, u.Host = "amqps", l.Addr().String()
	return u.String(), ca
}

func TestTLS(t *testing.T) {
	ctx := testContext(t)
	rawURL, ca := tlsEndpoint(t)
	b, err := bus.Open(ctx, rawURL+"?ca="+url.QueryEscape(ca))
	if err != nil {
		t.Fatal(err)
	}
	topic := newTopic(t)
	if err := b.Publish(ctx, topic, message("1", "")); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	// A certificate that nobody vouches for is an error at once.
	start := time.Now()
	if _, err := bus.Open(ctx, rawURL); err == nil || !strings.Contains(err.Error(), "certificate") || bus.IsRetryable(err) {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
