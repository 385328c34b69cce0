// Converts an image in an OCI layout to other systems' formats, with those systems' own code: what the bench of formats reads.
//
//	converters FORMAT LAYOUT OUT
//
// Formats: estargz, zstdchunked-stargz, zstdchunked-containers, soci, nydus-v5, nydus-v6, nydus-zran, erofs. Those of nydus run
// $NYDUS_IMAGE (nydus-image), and erofs runs $MKFS_EROFS TAR IMAGE for each layer.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	nydus "github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/containerd/stargz-snapshotter/nativeconverter/zstdchunked"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: converters FORMAT LAYOUT OUT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintf(os.Stderr, "error: converting %s to %s: %v\n", os.Args[2], os.Args[1], err)
		os.Exit(1)
	}
}

func run(format, layout, out string) error {
	ctx := context.Background()
	image, err := copyLayout(layout, out)
	if err != nil {
		return err
	}
	cs, err := local.NewLabeledStore(out, newLabels())
	if err != nil {
		return err
	}
	var converted *ocispec.Descriptor
	if format == "soci" {
		converted, err = withSoci(ctx, cs, out, image)
	} else {
		var convert converter.ConvertFunc
		if convert, err = converterOf(format, out); err == nil {
			converted, err = convert(ctx, cs, image)
		}
	}
	if err != nil {
		return err
	}
	if converted == nil {
		return fmt.Errorf("nothing of it was converted")
	}
	return finish(ctx, cs, out, *converted)
}

// converterOf is how containerd converts all layers of an image.
func converterOf(format, out string) (converter.ConvertFunc, error) {
	var layer converter.ConvertFunc
	var hooks converter.ConvertHooks
	switch format {
	case "estargz":
		layer = estargz.LayerConvertFunc()
	case "zstdchunked-stargz":
		layer = zstdchunked.LayerConvertFunc()
	case "zstdchunked-containers":
		layer = containersChunked
	case "erofs":
		layer = erofs
	case "nydus-v5", "nydus-v6", "nydus-zran":
		pack := nydus.PackOption{
			WorkDir: out, BuilderPath: os.Getenv("NYDUS_IMAGE"), FsVersion: "6", Compressor: "zstd",
			OCIRef: format == "nydus-zran",
		}
		if format == "nydus-v5" {
			pack.FsVersion, pack.Compressor = "5", "lz4_block"
		}
		layer = nydus.LayerConvertFunc(pack)
		hooks.PostConvertHook = nydus.ConvertHookFunc(nydus.MergeOption{
			WorkDir: out, BuilderPath: pack.BuilderPath, FsVersion: pack.FsVersion, OCI: true, OCIRef: pack.OCIRef,
		})
	default:
		return nil, fmt.Errorf("unknown format")
	}
	return converter.IndexConvertFuncWithHook(layer, true, platforms.All, hooks), nil
}

func withSoci(ctx context.Context, cs content.Store, out string, image ocispec.Descriptor) (*ocispec.Descriptor, error) {
	blobs, err := store.NewSociStore(out)
	if err != nil {
		return nil, err
	}
	db, err := soci.NewDB(filepath.Join(out, "soci.db"))
	if err != nil {
		return nil, err
	}
	builder, err := soci.NewIndexBuilder(cs, blobs, soci.WithArtifactsDb(db))
	if err != nil {
		return nil, err
	}
	return builder.Convert(ctx, images.Image{Name: "image", Target: image})
}

// erofs makes a file system's image of a layer, as containerd's EROFS differ does.
func erofs(ctx context.Context, cs content.Store, layer ocispec.Descriptor) (*ocispec.Descriptor, error) {
	return eachLayer(ctx, cs, layer, "application/vnd.erofs.layer.v1", func(tar io.Reader, to io.Writer) (map[string]string, error) {
		dir, err := os.MkdirTemp("", "layer")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		from, image := filepath.Join(dir, "tar"), filepath.Join(dir, "image")
		if err := writeFile(from, tar); err != nil {
			return nil, err
		}
		if said, err := exec.CommandContext(ctx, os.Getenv("MKFS_EROFS"), from, image).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %s", err, said)
		}
		made, err := os.Open(image)
		if err != nil {
			return nil, err
		}
		defer made.Close()
		_, err = io.Copy(to, made)
		return nil, err
	})
}

// copyLayout makes a layout of the same blobs, and gives its one image.
func copyLayout(from, to string) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	if err := os.MkdirAll(filepath.Join(to, "blobs/sha256"), 0o755); err != nil {
		return none, err
	}
	blobs, err := os.ReadDir(filepath.Join(from, "blobs/sha256"))
	if err != nil {
		return none, err
	}
	for _, blob := range blobs {
		name := filepath.Join("blobs/sha256", blob.Name())
		if err := os.Link(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return none, err
		}
	}
	bytes, err := os.ReadFile(filepath.Join(from, "index.json"))
	if err != nil {
		return none, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(bytes, &index); err != nil {
		return none, err
	}
	if len(index.Manifests) != 1 {
		return none, fmt.Errorf("it has %d images: only one can be converted", len(index.Manifests))
	}
	return index.Manifests[0], nil
}

// finish makes the image the layout's only one, and removes what it does not name.
func finish(ctx context.Context, cs content.Store, out string, image ocispec.Descriptor) error {
	named := map[digest.Digest]bool{}
	walk := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		named[d.Digest] = true
		// What a layer refers to beside itself: nydus' zran.
		if ref, err := digest.Parse(d.Annotations["containerd.io/snapshot/nydus-ref"]); err == nil {
			named[ref] = true
		}
		if !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			return nil, nil
		}
		return images.Children(ctx, cs, d)
	})
	if err := images.Walk(ctx, walk, image); err != nil {
		return err
	}
	blobs, err := os.ReadDir(filepath.Join(out, "blobs/sha256"))
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		if !named[digest.NewDigestFromEncoded(digest.SHA256, blob.Name())] {
			if err := os.Remove(filepath.Join(out, "blobs/sha256", blob.Name())); err != nil {
				return err
			}
		}
	}
	for _, left := range []string{"ingest", "soci.db"} {
		if err := os.RemoveAll(filepath.Join(out, left)); err != nil {
			return err
		}
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{image},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index.json"), index, 0o644)
}

func writeFile(path string, from io.Reader) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, from); err != nil {
		return err
	}
	return file.Close()
}

// diffIDLabel is where containerd's converter looks for a new layer's diffID.
func diffIDLabel(id digest.Digest) content.Opt {
	return content.WithLabels(map[string]string{labels.LabelUncompressed: id.String()})
}
