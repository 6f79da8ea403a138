package publish

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

// readAll lists what a reader finds, bad records as "line: what is wrong".
func readAll(t testing.TB, r recordReader) (bodies, bad []string) {
	t.Helper()
	last := 0
	for {
		line, body, badErr, err := r.next()
		switch {
		case errors.Is(err, io.EOF):
			return bodies, bad
		case err != nil:
			t.Fatal(err)
		case line < last:
			t.Fatalf("line %d comes after line %d", line, last)
		case badErr != nil:
			bad = append(bad, position{"f", line}.String()+": "+badErr.Error())
		default:
			bodies = append(bodies, string(body))
		}
		last = line
	}
}

func TestNDJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLineBytes)
	bodies, bad := readAll(t, newNDJSON(strings.NewReader(byteOrderMark+"{1}\r\n\n  {2}  \n"+long+"y\n{3}\n"+long[:maxLineBytes-1]+"\n{4}")))
	if want := "{1} {2} {3} " + long[:maxLineBytes-1] + " {4}"; strings.Join(bodies, " ") != want {
		t.Errorf("got %d bodies", len(bodies))
	}
	if len(bad) != 1 || bad[0] != "f:4: line: is longer than 1MiB" {
		t.Errorf("bad: %q", bad)
	}
}

func TestCSV(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ text, bodies, bad string }{
		"all kinds": {
			"user_id,metadata.plan,metadata.seats:number,metadata.on:bool,company.id\nann,pro,1.50,True,c\n",
			`{"user_id":"ann","metadata":{"plan":"pro","seats":1.50,"on":true},"company":{"id":"c"}}`, "",
		},
		"empty cells are left out": {"user_id,metadata.a,company.id\nann,,\n", `{"user_id":"ann"}`, ""},
		"no user":                  {"user_id,metadata.a\n,x\n", `{"metadata":{"a":"x"}}`, ""},
		"null":                     {"user_id,metadata.a:number\nann,NULL\n", `{"user_id":"ann","metadata":{"a":null}}`, ""},
		"quotes and lines":         {"user_id,metadata.a\nann,\"say \"\"hi\"\"\nto all\"\nbob,x\n", `{"user_id":"ann","metadata":{"a":"say \"hi\"\nto all"}}|{"user_id":"bob","metadata":{"a":"x"}}`, ""},
		"dots in a name":           {"user_id,metadata.a.b\nann,x\n", `{"user_id":"ann","metadata":{"a.b":"x"}}`, ""},
		"byte order mark":          {byteOrderMark + "\"user_id\"\nann\n", `{"user_id":"ann"}`, ""},
		"nothing":                  {"", "", ""},
		"only names":               {"user_id\n", "", ""},
		"too few cells":            {"user_id,metadata.a\nann\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, "f:2: row: has 1 cell, the first row has 2"},
		"bad quote":                {"user_id,metadata.a\nann,x\"y\nbob,x\n", `{"user_id":"bob","metadata":{"a":"x"}}`, `f:2: row: bare " in non-quoted-field in line 2, column 6`},
		"not a number":             {"user_id,metadata.a:number\nann,1e\n", "", `f:2: column "metadata.a:number": is not a number such as 12 or 1.5`},
		"not a bool":               {"user_id,metadata.a:bool\nann,yes\n", "", `f:2: column "metadata.a:bool": is not true or false`},
		"not UTF-8":                {"user_id\nann\xff\n", "", `f:2: column "user_id": is not UTF-8`},
		"unknown column":           {"user_id,email\nann,x\n", "", `f:1: column "email": must be user_id, metadata.NAME or company.NAME`},
		"no name":                  {"user_id,metadata.\nann,x\n", "", `f:1: column "metadata.": must be user_id, metadata.NAME or company.NAME`},
		"a numeric user":           {"user_id:number\n1\n", "", `f:1: column "user_id:number": must be user_id, metadata.NAME or company.NAME`},
		"twice":                    {"user_id,metadata.a,metadata.a:bool\nann,x,true\n", "", `f:1: column "metadata.a:bool": appears twice`},
		"no user_id":               {"metadata.a\nx\n", "", "f:1: first row: has no column user_id (are the separators commas?)"},
		"semicolons":               {"user_id;metadata.a\nann;x\n", "", `f:1: column "user_id;metadata.a": must be user_id, metadata.NAME or company.NAME`},
		"an open quote":            {"user_id\nann\n\"" + strings.Repeat("x", 2<<20), `{"user_id":"ann"}`, "f:3: row: is longer than 1MiB; the rest of the file is skipped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bodies, bad := readAll(t, newCSV(strings.NewReader(test.text), "NULL"))
			if got := strings.Join(bodies, "|"); got != test.bodies {
				t.Errorf("bodies %q, want %q", got, test.bodies)
			}
			if got := strings.Join(bad, "|"); got != test.bad {
				t.Errorf("bad %q, want %q", got, test.bad)
			}
		})
	}
}

// FuzzCSV checks that whatever comes out is JSON, and that what has a user is an event
// with that user.
func FuzzCSV(f *testing.F) {
	f.Add("user_id,metadata.a:number,metadata.b:bool,company.id\nann,1,true,c\n")
	f.Add("user_id,metadata.\"\n\"\nann")
	f.Add(byteOrderMark + "user_id\n\xff\n\n\"")
	f.Fuzz(func(t *testing.T, text string) {
		bodies, _ := readAll(t, newCSV(strings.NewReader(text), `\N`))
		for _, body := range bodies {
			if !json.Valid([]byte(body)) {
				t.Fatalf("%q is not JSON", body)
			}
			event, err := userpilot.Parse([]byte(body))
			if err == nil && event.UserID() == "" {
				t.Fatalf("%q has no user", body)
			}
		}
	})
}

// FuzzNDJSON checks that the lines that come out are those of the input.
func FuzzNDJSON(f *testing.F) {
	f.Add("{}\n\n {} \r\n{")
	f.Add(byteOrderMark + byteOrderMark)
	f.Fuzz(func(t *testing.T, text string) {
		bodies, bad := readAll(t, newNDJSON(strings.NewReader(text)))
		var want []string
		for line := range strings.SplitSeq(strings.TrimPrefix(text, byteOrderMark), "\n") {
			if line = strings.TrimSpace(line); line != "" {
				want = append(want, line)
			}
		}
		if len(bad) == 0 && strings.Join(bodies, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got %q, want %q", bodies, want)
		}
	})
}

func TestContentIDs(t *testing.T) {
	t.Parallel()
	ids := func(file string, lines ...string) (ids []string) {
		var c contentIDs
		for _, line := range lines {
			ids = append(ids, c.next(record{position: position{file: file}, body: []byte(line)}))
		}
		return ids
	}
	first := ids("f", "pro", "basic", "pro")
	if first[0] == first[2] {
		t.Error("a user's third event would be dropped, as it equals the first")
	}
	again := ids("g", "pro", "basic", "pro", "trial")
	if strings.Join(again[:3], " ") != strings.Join(first, " ") {
		t.Error("a file that has grown gets other ids for what was there")
	}
	var c contentIDs
	c.next(record{position: position{file: "f"}, body: []byte("x")})
	if c.next(record{position: position{file: "g"}, body: []byte("pro")}) != first[0] {
		t.Error("ids depend on the file before")
	}
}
