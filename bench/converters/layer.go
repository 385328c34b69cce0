package main

import (
	"context"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containers/storage/pkg/chunked/compressor"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containersChunked is zstd:chunked as podman, buildah and skopeo write it.
func containersChunked(ctx context.Context, cs content.Store, layer ocispec.Descriptor) (*ocispec.Descriptor, error) {
	return eachLayer(ctx, cs, layer, ocispec.MediaTypeImageLayerZstd, func(tar io.Reader, to io.Writer) (map[string]string, error) {
		annotations := map[string]string{}
		packed, err := compressor.ZstdCompressor(to, annotations, nil)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(packed, tar); err != nil {
			return nil, err
		}
		return annotations, packed.Close()
	})
}

// eachLayer stores what pack makes of a layer's tar; it gives the annotations.
func eachLayer(
	ctx context.Context, cs content.Store, layer ocispec.Descriptor, mediaType string,
	pack func(tar io.Reader, to io.Writer) (map[string]string, error),
) (*ocispec.Descriptor, error) {
	if !images.IsLayerType(layer.MediaType) {
		return nil, nil
	}
	stored, err := cs.ReaderAt(ctx, layer)
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	stream, err := compression.DecompressStream(io.NewSectionReader(stored, 0, stored.Size()))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	writer, err := content.OpenWriter(ctx, cs, content.WithRef("convert-"+layer.Digest.String()))
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	diffID := digest.Canonical.Digester()
	annotations, err := pack(io.TeeReader(stream, diffID.Hash()), writer)
	if err != nil {
		return nil, err
	}
	made := writer.Digest()
	id := diffID.Digest()
	if mediaType != ocispec.MediaTypeImageLayerZstd {
		// Nothing is around the layer.
		id = made
	}
	status, err := writer.Status()
	if err != nil {
		return nil, err
	}
	if err := writer.Commit(ctx, status.Offset, made, diffIDLabel(id)); err != nil {
		return nil, err
	}
	return &ocispec.Descriptor{MediaType: mediaType, Digest: made, Size: status.Offset, Annotations: annotations}, nil
}

// labelStore keeps labels for this run only.
type labelStore struct {
	mutex sync.Mutex
	all   map[digest.Digest]map[string]string
}

func newLabels() *labelStore {
	return &labelStore{all: map[digest.Digest]map[string]string{}}
}

func (s *labelStore) Get(d digest.Digest) (map[string]string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.copied(d), nil
}

func (s *labelStore) copied(d digest.Digest) map[string]string {
	all := map[string]string{}
	for key, value := range s.all[d] {
		all[key] = value
	}
	return all
}

func (s *labelStore) Set(d digest.Digest, labels map[string]string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.all[d] = labels
	return nil
}

func (s *labelStore) Update(d digest.Digest, update map[string]string) (map[string]string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	all := s.copied(d)
	for key, value := range update {
		if value == "" {
			delete(all, key)
		} else {
			all[key] = value
		}
	}
	s.all[d] = all
	return all, nil
}
