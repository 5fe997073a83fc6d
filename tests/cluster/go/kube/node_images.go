package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg"
)

// nodeImages pulls, lists and removes the node's images through the kubelet's own interface to the container runtime,
// so that a pull here leaves exactly what a pull for a pod would.
func nodeImages(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: node-images ENDPOINT pull REFERENCE | list | remove REFERENCE")
	}
	endpoint, verb, references := args[0], args[1], args[2:]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	service, err := cri.NewRemoteImageService(endpoint, 30*time.Second, nil, nil)
	if err != nil {
		return fmt.Errorf("container runtime at %s: %w", endpoint, err)
	}
	if verb == "list" {
		images, err := service.ListImages(ctx, nil)
		if err != nil {
			return fmt.Errorf("list images: %w", err)
		}
		for _, image := range images {
			for _, tag := range image.RepoTags {
				fmt.Fprintln(os.Stdout, tag, strings.TrimPrefix(image.Id, "sha256:"))
			}
		}
		return nil
	}
	for _, reference := range references {
		spec := &runtimeapi.ImageSpec{Image: reference}
		switch verb {
		case "pull":
			_, err = service.PullImage(ctx, spec, nil, nil)
		case "remove":
			err = service.RemoveImage(ctx, spec)
		default:
			err = fmt.Errorf("unknown verb")
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", verb, reference, err)
		}
	}
	return nil
}
