package client

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of envoy/service/discovery/v3/discovery.proto, envoy/config/core/v3/base.proto,
// google/rpc/status.proto and google/protobuf/{any,struct}.proto, as far as a delta client needs them. They are
// encoded by hand because the protobuf runtime with Envoy's types would outweigh the rest of the proxy.

// Field numbers of DeltaDiscoveryRequest.
const (
	requestNode        = 1
	requestTypeURL     = 2
	requestSubscribe   = 3
	requestUnsubscribe = 4
	requestInitial     = 5
	requestNonce       = 6
	requestErrorDetail = 7
)

// Field numbers of DeltaDiscoveryResponse. The version of the whole answer is for people only and not read.
const (
	responseResources = 2
	responseTypeURL   = 4
	responseNonce     = 5
	responseRemoved   = 6
)

// Field numbers of Resource.
const (
	resourceVersion = 1
	resourceBody    = 2
	resourceName    = 3
)

// Field numbers of google.protobuf.Any.
const (
	anyTypeURL = 1
	anyValue   = 2
)

// Field numbers of core.Node and core.Locality.
const (
	nodeID       = 1
	nodeCluster  = 2
	nodeMetadata = 3
	nodeLocality = 4

	localityRegion  = 1
	localityZone    = 2
	localitySubZone = 3
)

// Field numbers of google.protobuf.Struct, its map entry, Value and ListValue.
const (
	structFields = 1
	mapKey       = 1
	mapValue     = 2
	valueString  = 3
	valueStruct  = 5
	valueList    = 6
	listValues   = 1
)

// Field numbers of google.rpc.Status, and the one code that a refusal carries.
const (
	statusCode    = 1
	statusMessage = 2

	codeInvalidArgument = 3
)

// refusalMaxBytes bounds the message of a refused response: a decoder's error may quote what it refuses.
const refusalMaxBytes = 4 << 10

// request is a DeltaDiscoveryRequest.
type request struct {
	node        []byte // the encoded node, only in the first request of a stream
	typeURL     string
	subscribe   []string
	unsubscribe []string
	initial     map[string]string // name to version, only in the first request of a type on a stream
	nonce       string
	refusal     string // why the response of that nonce was refused; empty when it was accepted
}

// response is a DeltaDiscoveryResponse.
type response struct {
	typeURL   string
	nonce     string
	resources []Resource // the bodies share the bytes that were decoded
	bodyTypes []string   // the type URLs of the bodies; one after another of the same type count once
	removed   []string
}

// encode renders the request as protobuf.
func (r *request) encode() []byte {
	var b []byte
	if len(r.node) > 0 {
		b = appendBytes(b, requestNode, r.node)
	}
	b = appendString(b, requestTypeURL, r.typeURL)
	for _, name := range r.subscribe {
		b = appendElement(b, requestSubscribe, name)
	}
	for _, name := range r.unsubscribe {
		b = appendElement(b, requestUnsubscribe, name)
	}
	for _, name := range slices.Sorted(maps.Keys(r.initial)) {
		var entry []byte
		entry = appendString(entry, mapKey, name)
		entry = appendString(entry, mapValue, r.initial[name])
		b = appendBytes(b, requestInitial, entry)
	}
	b = appendString(b, requestNonce, r.nonce)
	if r.refusal != "" {
		var status []byte
		status = protowire.AppendTag(status, statusCode, protowire.VarintType)
		status = protowire.AppendVarint(status, codeInvalidArgument)
		message := r.refusal[:min(len(r.refusal), refusalMaxBytes)]
		status = appendString(status, statusMessage, strings.ToValidUTF8(message, ""))
		b = appendBytes(b, requestErrorDetail, status)
	}
	return b
}

// encode renders the node as protobuf. It fails on metadata of another kind than documented.
func (n *Node) encode() ([]byte, error) {
	var b []byte
	b = appendString(b, nodeID, n.ID)
	b = appendString(b, nodeCluster, n.Cluster)
	if len(n.Metadata) > 0 {
		var fields []byte
		for _, key := range slices.Sorted(maps.Keys(n.Metadata)) {
			value, err := encodeValue(n.Metadata[key])
			if err != nil {
				return nil, fmt.Errorf("encode node metadata %q: %w", key, err)
			}
			fields = appendField(fields, key, value)
		}
		b = appendBytes(b, nodeMetadata, fields)
	}
	if n.Locality != (Locality{}) {
		var locality []byte
		locality = appendString(locality, localityRegion, n.Locality.Region)
		locality = appendString(locality, localityZone, n.Locality.Zone)
		locality = appendString(locality, localitySubZone, n.Locality.SubZone)
		b = appendBytes(b, nodeLocality, locality)
	}
	return b, nil
}

// encodeValue renders one metadata value as google.protobuf.Value.
func encodeValue(value any) ([]byte, error) {
	switch v := value.(type) {
	case string:
		return appendElement(nil, valueString, v), nil
	case []string:
		var list []byte
		for _, item := range v {
			list = appendBytes(list, listValues, appendElement(nil, valueString, item))
		}
		return appendBytes(nil, valueList, list), nil
	case map[string]string:
		var fields []byte
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fields = appendField(fields, key, appendElement(nil, valueString, v[key]))
		}
		return appendBytes(nil, valueStruct, fields), nil
	default:
		return nil, fmt.Errorf("type %T is none of string, []string, map[string]string", value)
	}
}

// appendField appends one entry of a Struct's map of fields.
func appendField(b []byte, key string, value []byte) []byte {
	var entry []byte
	entry = appendString(entry, mapKey, key)
	entry = appendBytes(entry, mapValue, value)
	return appendBytes(b, structFields, entry)
}

// appendString appends a string field, and nothing when it is empty, as proto3 wants a plain field.
func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return appendElement(b, field, s)
}

// appendElement appends a string field also when it is empty: one of a list, or of a oneof. Bytes that are not
// UTF-8 are left out, because a receiver refuses the whole message for them.
func appendElement(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, strings.ToValidUTF8(s, ""))
}

// appendBytes appends a message or bytes field.
func appendBytes(b []byte, field protowire.Number, value []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}

// decodeResponse reads a DeltaDiscoveryResponse. Unknown fields are skipped. Bodies are not copied.
func decodeResponse(b []byte) (*response, error) {
	r := &response{}
	err := eachField(b, func(field int, value []byte) (err error) {
		switch field {
		case responseTypeURL:
			r.typeURL, err = text(value)
		case responseNonce:
			r.nonce, err = text(value)
		case responseRemoved:
			var name string
			name, err = text(value)
			r.removed = append(r.removed, name)
		case responseResources:
			err = r.decodeResource(value)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("decode discovery response: %w", err)
	}
	return r, nil
}

// decodeResource reads a Resource and the Any inside. One without an Any only prolongs a time to live, which we do
// not ask for, and is left out.
func (r *response) decodeResource(b []byte) error {
	var resource Resource
	var bodyType []byte
	present := false
	err := eachField(b, func(field int, value []byte) (err error) {
		switch field {
		case resourceVersion:
			resource.Version, err = text(value)
		case resourceName:
			resource.Name, err = text(value)
		case resourceBody:
			present = true
			err = eachField(value, func(field int, value []byte) error {
				switch field {
				case anyTypeURL:
					bodyType = value
				case anyValue:
					resource.Body = value
				}
				return nil
			})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("resource %d: %w", len(r.resources), err)
	}
	if !present {
		return nil
	}
	r.resources = append(r.resources, resource)
	if n := len(r.bodyTypes); n == 0 || r.bodyTypes[n-1] != string(bodyType) {
		r.bodyTypes = append(r.bodyTypes, string(bodyType))
	}
	return nil
}

// check says why a response that could be decoded has to be refused as a whole.
func (r *response) check() error {
	for _, bodyType := range r.bodyTypes {
		if bodyType != r.typeURL {
			return fmt.Errorf("a response of type %q holds a resource of type %q", r.typeURL, bodyType)
		}
	}
	seen := make(map[string]struct{}, len(r.resources))
	for _, resource := range r.resources {
		if resource.Name == "" {
			return errors.New("a resource has no name")
		}
		if _, twice := seen[resource.Name]; twice {
			return fmt.Errorf("the resource %q is there twice", resource.Name)
		}
		seen[resource.Name] = struct{}{}
	}
	return nil
}

// eachField calls f with each length-delimited field of a message, in order. Fields of other wire types are
// skipped: the messages that a client receives have none that it needs.
func eachField(b []byte, f func(field int, value []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			n = protowire.ConsumeFieldValue(field, kind, b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(int(field), value); err != nil {
			return err
		}
	}
	return nil
}

// text copies a string field. Proto3 strings are UTF-8.
func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errors.New("a string is not UTF-8")
	}
	return string(b), nil
}
