package publish

import (
	"fmt"
	"strings"
	"testing"
)

// A file of which all lines are wrong in the same way is one error; others have one for each line.
func TestOneErrorForAFile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		file, text, want string
		lines            int // that are reported
	}{
		"another shape":   {"a.ndjson", strings.Repeat(`{"id":1}`+"\n", 1000), "FILE: none of its 1,000 lines can be published, from line 1 on: user_id: is missing\n", 0},
		"all the same":    {"a.csv", "user_id,n:number\na,x\nb,y\nc,z\n", `FILE: none of its 3 lines can be published, from line 2 on: column "n:number": is not a number`, 0},
		"only two":        {"a.ndjson", "{}\n{}\n", "2 bad lines: user_id: is missing\n", 2},
		"one is good":     {"a.ndjson", "{}\n{}\n{}\n{}\n" + `{"user_id":"a"}`, "4 bad lines: user_id: is missing\n", 4},
		"the first good":  {"a.ndjson", `{"user_id":"a"}` + "\n{}\n{}\n{}\n{}\n", "4 bad lines: user_id: is missing\n", 4},
		"different":       {"a.ndjson", "{}\n{}\n{}\n" + `{"user_id":""}`, "3 bad lines: user_id: is missing\n", 4},
		"numbers differ":  {"a.ndjson", "x\n xx\n {]\n", "FILE: none of its 3 lines can be published, from line 1 on: body: is not JSON: it breaks after byte …\n", 0},
		"many, then good": {"a.ndjson", strings.Repeat("{}\n", 50) + `{"user_id":"a"}`, "and 30 bad lines more", 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := []string{"--format", "ndjson"}
			if strings.HasSuffix(test.file, ".csv") {
				args = nil
			}
			got := dryRun(t, test.file, test.text, args...)
			if lines := strings.Count(got, "FILE:"); !strings.Contains(got, test.want) || lines != max(test.lines+1, 1+1) && test.lines > 0 || test.lines == 0 && lines != 1 {
				t.Errorf("%d lines, want %q:\n%s", lines, test.want, got)
			}
			if whole := strings.Contains(got, "nothing would be published"); whole != (test.lines == 0) {
				t.Errorf("refused as a whole: %v\n%s", whole, got)
			}
		})
	}
}

// Two columns of the users' name would be a guess.
func TestTwoColumnsOfUsers(t *testing.T) {
	t.Parallel()
	got := dryRun(t, "a.csv", "user_id,user_id\n1,2\n")
	if !strings.Contains(got, `FILE: line 1: column "user_id": appears twice: columns 1 and 2, and only one can have the users' ids`) {
		t.Error(got)
	}
	if got := dryRun(t, "a.csv", "USER_ID\n1\n"); !strings.Contains(got, `if column 1 has the users' ids, give --user-id "USER_ID"`) {
		t.Error(got)
	}
}

// Where a table may have been cut off, its last row may not be what it was.
func TestLastLineWithoutEnd(t *testing.T) {
	t.Parallel()
	const note = "the last line has no end"
	for text, want := range map[string]bool{
		"user_id,plan\nann,pr": true, "user_id,plan\nann,\"pro\"": true, "user_id,plan\nann,pro\nbob": true, "user_id,plan\rann,pr": true,
		"user_id,plan\nann,pro\n": false, "user_id,plan\r\nann,pro\r\n": false, "user_id,plan\n\n": false, "user_id,plan\rann,pro\r": false, "user_id,plan": true,
	} {
		if got := dryRun(t, "a.csv", text); strings.Contains(got, note) != want {
			t.Errorf("%q\n%s", text, got)
		}
	}
}

// Objects that share a line are told apart.
func TestObjectsOfOneLine(t *testing.T) {
	t.Parallel()
	got := dryRun(t, "a.json", `[{"user_id":"a"},{},{"user_id":"b"},`+"\n"+`{},{"user_id":7}]`)
	for _, want := range []string{"FILE:1, object 2: user_id: is missing\n", "FILE:2: user_id: is missing\n", "FILE:2, object 5: user_id: must be a string"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// However many kinds of mistakes there are, the summary stays short.
func TestManyKinds(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range 130 {
		fmt.Fprintf(&text, `{"user_id":"u","x%d":1}`+"\n", i)
	}
	got := dryRun(t, "a.ndjson", text.String())
	if kinds := strings.Count(got, " that --strict refuses: "); kinds != maxShownKinds || !strings.Contains(got, "\n110 events that --strict refuses for other reasons\n") {
		t.Errorf("%d kinds:\n%s", kinds, got)
	}
}

// An object that is too long is one bad line of a document, too.
func TestLongObject(t *testing.T) {
	t.Parallel()
	long := `{"user_id":"` + strings.Repeat("x", maxLineBytes) + "\",\n\"metadata\":{}}"
	bodies, bad, whole := readAll(t, "a.json", "[\n{\"user_id\":\"a\"},\n"+long+",\n{\"user_id\":\"b\"}]", options())
	if got := strings.Join(bodies, "|"); got != `{"user_id":"a"}|{"user_id":"b"}` || fmt.Sprint(bad) != "[3: object: is longer than 1MiB]" || whole != "" {
		t.Errorf("%s, %q, %q", got, bad, whole)
	}
	if _, _, whole := readAll(t, "a.json", "[{\"a\":\n"+strings.Repeat("[", 2*maxLineBytes), options()); whole != "line 2: is not JSON: the brackets do not end" {
		t.Error(whole)
	}
}
