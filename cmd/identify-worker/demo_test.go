//go:build !noembed

package main

import "testing"

// A letter that was tried twice is one letter.
func TestDemoCountsLetters(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := &demo{base: &base{conn: f.conn}}
	var err error
	if d.dead, err = f.conn.SubscribeSync("userpilot.identify-dlq.>"); err != nil {
		t.Fatal(err)
	}
	for _, letter := range []string{"1.7", "1.8", "1.7"} {
		if err := f.conn.Publish("userpilot.identify-dlq."+letter, nil); err != nil {
			t.Fatal(err)
		}
	}
	if letters, err := d.deadLetters(); err != nil || len(letters) != 2 {
		t.Errorf("%d letters are seen (%v)", len(letters), err)
	}
}
