package accesslog

import "bytes"

// originalPath is where a rewrite keeps the path that the client sent.
const originalPath = "x-envoy-original-path"

func (o *operator) appendHeader(dst []byte, e *Entry) []byte {
	for _, name := range o.headers {
		if name == "" {
			break
		}
		value := e.header(o.field, name)
		if o.form == formWithoutQuery {
			value = withoutQuery(value)
		}
		if len(value) > 0 {
			return append(dst, value...)
		}
	}
	return dst
}

func (e *Entry) header(f field, name string) []byte {
	if f == fieldRequest && name[0] == ':' {
		switch name {
		case ":method":
			return e.Method
		case ":path":
			return e.Path
		case ":authority":
			return e.Authority
		case ":scheme":
			return e.Scheme
		default:
			return nil
		}
	}
	headers := e.Request
	switch f {
	case fieldResponse:
		headers = e.Response
	case fieldTrailers:
		headers = e.Trailers
	default:
	}
	if headers == nil {
		return nil
	}
	value, _ := headers.Get(name)
	return value
}

func (o *operator) appendPath(dst []byte, e *Entry) []byte {
	path := e.Path
	switch o.form {
	case formPathOnly, formWithoutQueryPathOnly:
	case formOriginalOnly, formWithoutQueryOriginalOnly:
		path = e.header(fieldRequest, originalPath)
	default:
		if original := e.header(fieldRequest, originalPath); len(original) > 0 {
			path = original
		}
	}
	switch o.form {
	case formWithoutQuery, formWithoutQueryPathOnly, formWithoutQueryOriginalOnly:
		path = withoutQuery(path)
	default:
	}
	return append(dst, path...)
}

func withoutQuery(path []byte) []byte {
	path, _, _ = bytes.Cut(path, []byte("?"))
	return path
}

// appendParameter appends the value of the query's first parameter called name, as it was sent.
func appendParameter(dst, path []byte, name string) []byte {
	_, rest, _ := bytes.Cut(path, []byte("?"))
	for len(rest) > 0 {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte("&"))
		if key, value, _ := bytes.Cut(pair, []byte("=")); string(key) == name {
			return append(dst, value...)
		}
	}
	return dst
}
