// containerd's own test suite for snapshotters, run against `peel serve` through containerd's proxy. Built and run by
// scripts/verify-snapshotter. Each test has a daemon and a store of its own.
package suite

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	program := os.Getenv("PEEL")
	if program == "" {
		return nil, nil, fmt.Errorf("PEEL does not name the program")
	}
	address := filepath.Join(root, "socket")
	daemon := exec.Command(program, "--store", filepath.Join(root, "store"), "serve", "--address", address)
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	daemon.Stderr = log
	// The daemon ends with this program, however that ends: that is, with the thread that started it, which is to live as long.
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- daemon.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return nil, nil, err
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	}
	// It waits until somebody listens.
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	connection, err := grpc.DialContext(limited, "unix://"+address, grpc.WithBlock(), grpc.WithContextDialer(dial),
		grpc.WithInsecure())
	if err != nil {
		daemon.Process.Kill()
		daemon.Wait()
		return nil, nil, err
	}
	stop := func() error {
		connection.Close()
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return daemon.Wait()
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "peel"), stop, nil
}

// Since 2.0, the suite leaves out of its test of renaming what overlays cannot do, if it is told that the snapshots are such.
func TestPeel(t *testing.T) {
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}
