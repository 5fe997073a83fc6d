// Command pause is the only program in the node's helper image.
//
// Called as pause it is the first process of every pod: it holds the pod's namespaces and reaps orphans. Called as setup
// and teardown it makes and removes the folder of a volume for the local-path provisioner.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "pause":
		pause()
	case "setup":
		err = setup(os.Getenv("VOL_DIR"))
	case "teardown":
		err = teardown(os.Getenv("VOL_DIR"))
	default:
		err = fmt.Errorf("%s: call this program pause, setup or teardown", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}

func setup(directory string) error {
	if !filepath.IsAbs(directory) {
		return fmt.Errorf("VOL_DIR %q is not an absolute path", directory)
	}
	if err := os.MkdirAll(directory, 0o777); err != nil {
		return err
	}
	return os.Chmod(directory, 0o777) // whatever the umask: pods run as any user
}

func teardown(directory string) error {
	if !filepath.IsAbs(directory) || filepath.Dir(directory) == "/" {
		return fmt.Errorf("VOL_DIR %q is not the folder of a volume", directory)
	}
	return os.RemoveAll(directory)
}
