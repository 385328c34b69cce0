// Package suite holds hoist's snapshotter to the tests that containerd has for its own.
package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// How long a daemon may take until it is ready, and to end.
const patience = 20 * time.Second

// TestSnapshotter runs every test of containerd's suite against a fresh daemon: $HOIST, in a store of its own.
func TestSnapshotter(t *testing.T) {
	program := os.Getenv("HOIST")
	if program == "" {
		t.Fatal("HOIST must name the program to test")
	}
	testsuite.SnapshotterSuite(t, "hoist", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return start(program, root)
	})
}

func start(program, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "snapshotter.sock")
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	daemon := exec.Command(program, "daemon", "--root", filepath.Join(root, "store"), "--snapshotter-socket", socket)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	end := func() error { return end(daemon, log.Name()) }
	if err := ready(socket); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	snapshotter := proxy.NewSnapshotter(api.NewSnapshotsClient(connection), "hoist")
	return snapshotter, func() error { return errors.Join(connection.Close(), end()) }, nil
}

func ready(socket string) error {
	for since := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		if time.Since(since) > patience {
			return fmt.Errorf("the daemon is not ready: %w", err)
		}
	}
}

// end asks the daemon to end, and says what it logged where it did not do so well.
func end(daemon *exec.Cmd, log string) error {
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	kill := time.AfterFunc(patience, func() { _ = daemon.Process.Kill() })
	defer kill.Stop()
	if err := daemon.Wait(); err != nil {
		said, _ := os.ReadFile(log)
		return fmt.Errorf("the daemon ended with %w: %s", err, said)
	}
	return nil
}
