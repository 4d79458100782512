package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/lateen-mesh/lateen/inject"
)

// configMax bounds the configuration of injection.
const configMax = 1 << 20

// kubeInject is `lateend kube-inject` and returns the exit code.
func kubeInject(args []string, in io.Reader, out, errs io.Writer) int {
	var cfg inject.Config
	var explain bool
	var config, proxyImage, initImage string
	var files []string
	flags := flag.NewFlagSet("kube-inject", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.Func("f", "`file` of objects as YAML, - for standard input; may be repeated", func(f string) error {
		files = append(files, f)
		return nil
	})
	flags.StringVar(&config, "config", "", "`file` of the configuration of injection")
	flags.StringVar(&proxyImage, "proxy-image", "", "`image` of lateen-proxy")
	flags.StringVar(&initImage, "init-image", "", "`image` of lateen-cni")
	flags.BoolVar(&explain, "explain", false, "say on standard error what was injected, and why or why not")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0 || len(files) == 0:
		_, _ = fmt.Fprintln(errs, "Error: name the objects with -f FILE, or -f - for standard input")
		return 2
	}
	err := func() error {
		if config != "" {
			var err error
			if cfg, err = readInjection(config); err != nil {
				return err
			}
		}
		if proxyImage != "" {
			cfg.ProxyImage = proxyImage
		}
		if initImage != "" {
			cfg.InitImage = initImage
		}
		if cfg.ProxyImage == "" || cfg.InitImage == "" {
			return errors.New("the images are not known: give --config FILE, or --proxy-image and --init-image")
		}
		injector, err := inject.New(cfg)
		if err != nil {
			return err
		}
		var why io.Writer
		if explain {
			why = errs
		}
		return injectFiles(injector, files, in, out, why)
	}()
	if err != nil {
		_, _ = fmt.Fprintln(errs, "Error:", err)
		return 1
	}
	return 0
}

// injectFiles injects files one behind the other.
func injectFiles(injector *inject.Injector, files []string, in io.Reader, out, explain io.Writer) error {
	for i, name := range files {
		r := in
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("read the objects: %w", err)
			}
			defer func() { _ = f.Close() }()
			r = f
		}
		if i > 0 {
			if _, err := io.WriteString(out, "---\n"); err != nil {
				return fmt.Errorf("write the objects: %w", err)
			}
		}
		if err := injector.InjectAll(r, out, explain); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// readInjection reads the configuration of injection from a file.
func readInjection(name string) (inject.Config, error) {
	text, err := readFile(name)
	if err != nil {
		return inject.Config{}, err
	}
	cfg, err := inject.ReadConfig(text)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return cfg, err
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, configMax+1))
	if err == nil && len(text) > configMax {
		err = fmt.Errorf("%s has more than %d MiB", name, configMax>>20)
	}
	return text, err
}
