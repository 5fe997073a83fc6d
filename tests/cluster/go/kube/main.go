// Command kube is every part of a one-node Kubernetes in one static binary; the name it is called by picks the part.
//
// One binary instead of eight shares the 100 MB of client libraries that each part links, and is built in one go.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var parts = map[string]func() int{
	"etcd":                    func() int { etcdmain.Main(os.Args); return 0 },
	"kube-apiserver":          command(apiserver.NewAPIServerCommand),
	"kube-controller-manager": command(controllers.NewControllerManagerCommand),
	"kube-proxy":              command(proxy.NewProxyCommand),
	"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubeadm":                 exitCode(kubeadm.Run),
	"kubectl":                 command(kubectl.NewDefaultKubectlCommand),
	"kubelet":                 command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"node-images":             exitCode(func() error { return nodeImages(os.Args[1:]) }),
}

func main() {
	part, ok := parts[filepath.Base(os.Args[0])]
	if !ok {
		names := make([]string, 0, len(parts))
		for name := range parts {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "%s: call this program by one of the names %s\n", os.Args[0], strings.Join(names, ", "))
		os.Exit(2)
	}
	followParent()
	os.Exit(part())
}

func command(create func() *cobra.Command) func() int {
	return func() int { return cli.Run(create()) }
}

func exitCode(run func() error) func() int {
	return func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
}

// followParent ends this process as soon as the other end of the pipe named by LIFELINE_FD is closed: a test run that
// is killed with SIGKILL must not leave its API server behind.
func followParent() {
	descriptor, err := strconv.Atoi(os.Getenv("LIFELINE_FD"))
	if err != nil {
		return
	}
	go func() {
		// Nobody ever writes to the pipe, so this returns at its end only.
		_, _ = os.NewFile(uintptr(descriptor), "lifeline").Read(make([]byte, 1))
		os.Exit(1)
	}()
}
