package kube

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/cli/redact"
	"github.com/lateen-mesh/lateen/deploy"
)

// The bounds of a report.
const (
	reportFileMax   = 4 << 20
	reportMax       = 256 << 20
	reportLogLines  = 10_000
	reportProxies   = 20
	reportObjectMax = 10_000 // of a kind
)

// errFull says that a report has reached its bound.
var errFull = fmt.Errorf("the report is full (%d MiB)", reportMax>>20)

// bugReport is `lateen bug-report`.
func (a *app) bugReport() *cobra.Command {
	var file string
	var proxies int
	cmd := &cobra.Command{
		Use: "bug-report", Short: "Gather what helps to find a fault into one archive", Args: checked(cobra.NoArgs),
		Long: "Gather versions, checks, Lateen's objects, configuration, logs, events and the proxies' orders and metrics into one\n" +
			"archive (.tar.gz). It reads no Secret; keys, tokens and passwords elsewhere are hidden, as are the commands and variables\n" +
			"of applications. Names, addresses and labels of the cluster are in it: look at it before you give it away.",
	}
	c := newCluster(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write, - for standard output; empty: lateen-bug-report-TIME.tar.gz here")
	cmd.Flags().IntVar(&proxies, "proxies", reportProxies, "of how many proxies, the sick ones first; of all namespaces, or with -n of one")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		w, err := c.world()
		if err != nil {
			return err
		}
		w.namespace, w.certDays = *c.flags.Namespace, 60
		out := a.out
		if file != "-" {
			file = cmp.Or(file, "lateen-bug-report-"+w.now().UTC().Format("20060102-150405")+".tar.gz")
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			out = f
		}
		g := newGathering(w, out)
		err = errors.Join(g.all(cmd.Context(), proxies), g.close())
		if err == nil && file != "-" {
			_, err = fmt.Fprintf(a.out, "%s: %d files; look at it before you give it away\n", file, g.files)
		}
		return err
	}
	return cmd
}

// gathering writes a report.
type gathering struct {
	*look
	zip    *gzip.Writer
	tar    *tar.Writer
	secret *redact.Redactor
	size   int
	files  int
	missed []string // what could not be gathered
}

func newGathering(w *world, out io.Writer) *gathering {
	g := &gathering{look: w.look(), zip: gzip.NewWriter(out), secret: redact.New()}
	g.tar = tar.NewWriter(g.zip)
	return g
}

func (g *gathering) close() error { return errors.Join(g.tar.Close(), g.zip.Close()) }

// add adds a file, without what is secret, and cut where it is too long.
func (g *gathering) add(name string, text []byte) error {
	if len(text) > reportFileMax {
		text = append(slices.Clone(text[:reportFileMax]), "\n[cut]\n"...)
	}
	text = g.secret.Hide(text)
	if g.size += len(text); g.size > reportMax {
		return errFull
	}
	g.files++
	err := g.tar.WriteHeader(&tar.Header{Name: path.Join("lateen-bug-report", name), Mode: 0o600, Size: int64(len(text)), ModTime: g.now(), Format: tar.FormatPAX})
	if err == nil {
		_, err = g.tar.Write(text)
	}
	return err
}

// miss notes what could not be gathered; only an end of all is an error.
func (g *gathering) miss(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errFull) || errors.Is(err, os.ErrClosed) {
		return err
	}
	g.missed = append(g.missed, what+": "+err.Error())
	return nil
}

// object adds an object as YAML, with its kind, which the API server leaves out of what it answers to typed clients.
func (g *gathering) object(name string, o runtime.Object) error {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	text, err := yaml.Marshal(o)
	if err != nil {
		return err
	}
	return g.add(name+".yaml", text)
}

// all gathers everything.
func (g *gathering) all(ctx context.Context, proxies int) error {
	for _, part := range []struct {
		what   string
		gather func(context.Context) error
	}{
		{"checks", g.checks},
		{"versions", g.versions},
		{"installation", g.installation},
		{"configuration", g.configuration},
		{"control plane", g.control},
		{"proxies", func(ctx context.Context) error { return g.dataPlane(ctx, proxies) }},
		{"events", g.events},
	} {
		if err := g.miss(part.what, part.gather(ctx)); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(g.missed) == 0 {
		return nil
	}
	return g.add("missing.txt", []byte(strings.Join(g.missed, "\n")+"\n"))
}

func (g *gathering) checks(ctx context.Context) error {
	var out strings.Builder
	if err := (checkOptions{proxy: true}).run(ctx, g.world, &out); err != nil && !errors.Is(err, errTold) {
		return err
	}
	return g.add("check.txt", []byte(out.String()))
}

func (g *gathering) versions(ctx context.Context) error {
	lines := []string{"lateen " + g.version}
	if v, err := g.kube.Discovery().ServerVersion(); err == nil {
		lines = append(lines, "Kubernetes "+v.GitVersion)
	}
	nodes, err := g.nodes(ctx)
	for _, n := range nodes {
		i := n.Status.NodeInfo
		lines = append(lines, strings.Join([]string{"node", n.Name, i.OSImage, i.KernelVersion, i.Architecture, i.KubeletVersion, i.ContainerRuntimeVersion}, "  "))
	}
	return errors.Join(err, g.add("versions.txt", []byte(strings.Join(lines, "\n")+"\n")))
}

// installation adds our own objects. Rights and accounts follow from the version.
func (g *gathering) installation(ctx context.Context) error {
	in, o := deploy.Namespace, meta.ListOptions{LabelSelector: labelInstallation}
	deployments, err := g.kube.AppsV1().Deployments(in).List(ctx, o)
	if err != nil {
		return err
	}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		bareMeta(&d.ObjectMeta)
		if err := g.object("installation/deployment-"+d.Name, d); err != nil {
			return err
		}
	}
	maps, err := g.kube.CoreV1().ConfigMaps(in).List(ctx, o)
	if err != nil {
		return err
	}
	for i := range maps.Items {
		m := &maps.Items[i]
		bareMeta(&m.ObjectMeta)
		if err := g.object("installation/configmap-"+m.Name, m); err != nil {
			return err
		}
	}
	hooks, err := g.mutating(ctx)
	if err != nil {
		return err
	}
	for i := range hooks { // all of them: others' may be in the way
		h := hooks[i].DeepCopy()
		bareMeta(&h.ObjectMeta)
		if err := g.object("installation/mutatingwebhook-"+h.Name, h); err != nil {
			return err
		}
	}
	held, err := g.kube.CoordinationV1().Leases(in).Get(ctx, leaseName, meta.GetOptions{})
	if err != nil {
		return err
	}
	bareMeta(&held.ObjectMeta)
	return g.object("installation/lease-"+held.Name, held)
}

// configuration adds all objects of Istio's and the Gateway API's kinds, a file for each kind.
func (g *gathering) configuration(ctx context.Context) error {
	there, err := g.definitions(ctx)
	if err != nil {
		return err
	}
	for name, d := range there {
		if d.storage == "" || !strings.HasSuffix(d.group, ".istio.io") && d.group != "gateway.networking.k8s.io" && !strings.HasSuffix(d.group, "lateen.dev") {
			continue
		}
		resource := schema.GroupVersionResource{Group: d.group, Version: d.storage, Resource: d.resource}
		list, err := g.objects.Resource(resource).List(ctx, meta.ListOptions{Limit: reportObjectMax})
		if err != nil {
			if err := g.miss(name, err); err != nil {
				return err
			}
			continue
		}
		var text []byte
		for _, u := range list.Items {
			unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
			unstructured.RemoveNestedField(u.Object, "metadata", "annotations", core.LastAppliedConfigAnnotation)
			one, err := yaml.Marshal(u.Object)
			if err != nil {
				return err
			}
			if text = append(append(text, "---\n"...), one...); len(text) > reportFileMax {
				break
			}
		}
		if len(text) > 0 {
			if err := g.add("configuration/"+name+".yaml", text); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *gathering) control(ctx context.Context) error {
	pods, err := g.controlPods(ctx)
	if err != nil {
		return err
	}
	for i := range pods {
		if err := g.pod(ctx, &pods[i], "control/"+pods[i].Name, portControlAdmin, []string{"/status", "/proxies"}); err != nil {
			return err
		}
	}
	return nil
}

// dataPlane adds what is known of some proxies, those first that something is wrong with.
func (g *gathering) dataPlane(ctx context.Context, limit int) error {
	list, err := g.proxies(ctx)
	if err != nil {
		return err
	}
	well := func(p proxy) int {
		if p.asked == nil && p.Ready && p.Connected && p.Synced && p.Refused == "" {
			return 1
		}
		return 0
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(x, y proxy) int { return cmp.Compare(well(x), well(y)) })
	for _, p := range list[:min(len(list), max(0, limit))] {
		pages := []string{"/status", "/config", "/edges", "/stats/prometheus"}
		if err := g.pod(ctx, p.pod, "proxies/"+p.Namespace+"/"+p.Name, portProxyAdmin, pages); err != nil {
			return err
		}
	}
	return nil
}

// pod adds a pod, the logs of our containers in it, and pages of one.
func (g *gathering) pod(ctx context.Context, p *core.Pod, folder string, port int, pages []string) error {
	bare := p.DeepCopy()
	barePod(bare)
	if err := g.object(folder+"/pod", bare); err != nil {
		return err
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if !slices.Contains([]string{proxyContainer, controlApp, "lateen-init", "lateen-validation"}, s.Name) {
			continue // the application's are its own
		}
		for _, previous := range []bool{false, true} {
			if previous && s.RestartCount == 0 {
				continue
			}
			name := folder + "/" + s.Name + map[bool]string{false: ".log", true: ".previous.log"}[previous]
			text, err := g.log(ctx, p, s.Name, previous)
			if err == nil {
				err = g.add(name, text)
			}
			if err := g.miss(name, err); err != nil {
				return err
			}
		}
	}
	for _, page := range pages {
		var text []byte
		_, err := g.dial.page(ctx, p.Namespace, p.Name, port, page, &text)
		if err == nil {
			err = g.add(folder+strings.ReplaceAll(page, "/stats/", "/")+".txt", text)
		}
		if err := g.miss(folder+page, err); err != nil {
			return err
		}
	}
	return nil
}

// log is the end of a container's log.
func (g *gathering) log(ctx context.Context, p *core.Pod, container string, previous bool) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, checkTimeout)
	defer stop()
	stream, err := g.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &core.PodLogOptions{
		Container: container, Previous: previous, TailLines: new(int64(reportLogLines)), LimitBytes: new(int64(reportFileMax)), Timestamps: true,
	}).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	return io.ReadAll(io.LimitReader(stream, reportFileMax))
}

// events adds those of the mesh's namespace and of those with proxies.
func (g *gathering) events(ctx context.Context) error {
	namespaces := []string{deploy.Namespace}
	pods, err := g.proxied(ctx)
	for _, p := range pods {
		if !slices.Contains(namespaces, p.Namespace) {
			namespaces = append(namespaces, p.Namespace)
		}
	}
	for _, namespace := range namespaces {
		list, failed := g.kube.CoreV1().Events(namespace).List(ctx, meta.ListOptions{Limit: reportObjectMax})
		if failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		var text []byte
		for _, e := range list.Items {
			line, _ := json.Marshal(map[string]any{ // of texts and numbers: never fails
				"at": e.LastTimestamp.UTC().Format(time.RFC3339), "count": e.Count, "type": e.Type, "reason": e.Reason,
				"object": e.InvolvedObject.Kind + " " + e.InvolvedObject.Name, "message": e.Message,
			})
			text = append(append(text, line...), '\n')
		}
		if err := g.add("events/"+namespace+".jsonl", text); err != nil {
			return err
		}
	}
	return err
}
