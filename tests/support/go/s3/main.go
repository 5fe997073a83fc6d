// Command s3 serves the S3 protocol from memory, with signatures checked, at the address S3_HOST (127.0.0.1 by default):
// http://<host>:<port> is its first line.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
)

func main() {
	host := os.Getenv("S3_HOST")
	if host == "" {
		host = "127.0.0.1"
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		log.Fatal(err)
	}
	keys := map[string]string{os.Getenv("AWS_ACCESS_KEY_ID"): os.Getenv("AWS_SECRET_ACCESS_KEY")}
	server := gofakes3.New(s3mem.New(), gofakes3.WithV4Auth(keys))
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, server.Server()))
}
