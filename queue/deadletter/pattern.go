package deadletter

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// blank stands for the variable parts of a pattern.
const blank = '…'

// Pattern replaces with "…" everything in a text that varies or may identify a person: the user id,
// quoted text, e-mail addresses, the paths of URLs, and each word with a digit, be it a number, a
// time, an address or an id. Only names of formats and protocols keep their digits, such as UTF-8.
// Personal data in plain words stays, because it looks like any other word. Userpilot's errors are
// English, so the quotes are too: "a", 'a', `a` and “a”.
//
// The rules are a contract: if they change, the next letters of a cause are in another group than its
// existing ones.
func Pattern(text, user string) string {
	p := patterner{text: blankUser(text, user), blanked: -1}
	p.addresses = strings.Contains(p.text, "@")
	p.out = make([]byte, 0, len(p.text)+utf8.UTFMax)
	for p.at < len(p.text) {
		r, size := utf8.DecodeRuneInString(p.text[p.at:])
		switch {
		case r == ' ':
			p.space()
		case p.opens(r, p.at):
			p.quoted(r, size)
		case isBreaker(r):
			p.literal(p.at + size)
		default:
			p.word()
		}
	}
	return strings.TrimRight(string(p.out), " ")
}

// blankUser replaces the user's id where it stands by itself.
func blankUser(text, user string) string {
	if user == "" || !strings.Contains(text, user) {
		return text
	}
	var out strings.Builder
	for at := 0; ; {
		i := strings.Index(text[at:], user)
		if i < 0 {
			out.WriteString(text)
			return out.String()
		}
		begin, end := at+i, at+i+len(user)
		if endsWord(text[:begin]) || startsWord(text[end:]) {
			_, size := utf8.DecodeRuneInString(user)
			at = begin + size
			continue
		}
		out.WriteString(text[:begin])
		out.WriteRune(blank)
		text, at = text[end:], 0
	}
}

// patterner makes one pass over a text.
type patterner struct {
	text      string
	at        int
	addresses bool // there may be e-mail addresses
	out       []byte
	// blanked is where the last blank ends in out, as long as only punctuation has followed. One
	// more blank then adds nothing, so that lists of any length look alike. Otherwise it is -1.
	blanked int
}

// space collapses spaces into one, and drops leading ones.
func (p *patterner) space() {
	p.at++
	if n := len(p.out); n > 0 && p.out[n-1] != ' ' {
		p.out = append(p.out, ' ')
	}
}

func (p *patterner) literal(end int) {
	p.out = append(p.out, p.text[p.at:end]...)
	p.at = end
}

// blank replaces the text up to end with a blank between before and after.
func (p *patterner) blank(before, after string, end int) {
	p.at = end
	if p.blanked >= 0 {
		p.out = p.out[:p.blanked]
		return
	}
	p.out = append(p.out, before...)
	p.out = utf8.AppendRune(p.out, blank)
	p.out = append(p.out, after...)
	p.blanked = len(p.out)
}

// quoted blanks quoted text. If the quote is not closed, for example because the text was cut, it
// blanks the rest.
func (p *patterner) quoted(open rune, size int) {
	begin := p.at
	for at := begin + size; at < len(p.text); {
		r, n := utf8.DecodeRuneInString(p.text[at:])
		switch {
		case r == '\\':
			_, escaped := utf8.DecodeRuneInString(p.text[at+n:])
			n += escaped
		case r == closer(open) && !(r == '\'' && startsWord(p.text[at+n:])):
			p.blank(p.text[begin:begin+size], p.text[at:at+n], at+n)
			return
		}
		at += n
	}
	p.blank(p.text[begin:begin+size], "", len(p.text))
}

// word consumes text up to the next space, quote or breaker.
func (p *patterner) word() {
	if end := p.address(); end > 0 {
		p.blank("", "", end)
		return
	}
	var shape wordShape
	end := p.at
	for end < len(p.text) {
		r, size := utf8.DecodeRuneInString(p.text[end:])
		if r == ' ' || isBreaker(r) || p.opens(r, end) {
			break
		}
		if r == '/' && strings.HasSuffix(p.text[p.at:end], ":/") {
			p.url(end+size, shape.odd)
			return
		}
		shape.see(r)
		end += size
	}
	if last := trimRight(p.text, p.at, end, ".:!?"); shape.varies() && !isTerm(p.text[p.at:last]) {
		if last == end {
			last = p.padding(end)
		}
		p.blank("", "", last)
		return
	}
	if shape.letters > 0 {
		p.blanked = -1
	}
	p.literal(end)
}

// padding returns the end of the padding of base64 that begins here, if there is any: whether an id
// has padding depends on its length.
func (p *patterner) padding(at int) int {
	end := at
	for end < len(p.text) && p.text[end] == '=' && end < at+2 {
		end++
	}
	if next := p.text[end:]; next == "" || strings.IndexByte(" .,;:!?)]}", next[0]) >= 0 {
		return end
	}
	return at
}

// address returns the end of an e-mail address that begins here, or 0. An address may contain
// characters that end other words, as in "o'brien+a=b@example.com".
func (p *patterner) address() int {
	if !p.addresses {
		return 0
	}
	sign := 0
	end := p.at
	for end < len(p.text) {
		r, size := utf8.DecodeRuneInString(p.text[end:])
		if r == ' ' || isSpecial(r) || p.opens(r, end) {
			break
		}
		if r == '@' {
			sign = end
		}
		end += size
	}
	if sign <= p.at {
		return 0
	}
	return trimRight(p.text, p.at, end, ".!?")
}

// url keeps the scheme, unless it is odd, and the host if it is a plain name.
func (p *patterner) url(host int, odd bool) {
	end := host
	for end < len(p.text) {
		r, size := utf8.DecodeRuneInString(p.text[end:])
		if r == ' ' || r == '<' || r == '>' || p.opens(r, end) {
			break
		}
		end += size
	}
	end = trimRight(p.text, host, end, ".,:;!?)]}")
	if odd {
		p.blank("", "", end)
		return
	}
	path := end
	if i := strings.IndexAny(p.text[host:end], "/?#"); i >= 0 {
		path = host + i
	}
	name := p.text[host:path]
	p.literal(host)
	p.blanked = -1
	switch {
	case strings.ContainsFunc(name, func(r rune) bool { return !isHost(r) }):
		p.blank("", "", end)
	case strings.Trim(p.text[path:end], "/") != "":
		p.blank(name+"/", "", end)
	default:
		p.literal(end)
	}
}

// trimRight returns the end of text[from:end] without trailing characters from cutset.
func trimRight(text string, from, end int, cutset string) int {
	return from + len(strings.TrimRight(text[from:end], cutset))
}

// opens reports whether a quote begins here. An apostrophe within or after a word does not begin
// one.
func (p *patterner) opens(r rune, at int) bool {
	return closer(r) != 0 && !(r == '\'' && endsWord(p.text[:at]))
}

func startsWord(text string) bool {
	r, _ := utf8.DecodeRuneInString(text)
	return isWord(r)
}

func endsWord(text string) bool {
	r, _ := utf8.DecodeLastRuneInString(text)
	return isWord(r)
}

// wordShape distinguishes ids from words.
type wordShape struct {
	odd            bool // there is a digit, a blank or an @
	letters, humps int  // a hump is an upper-case letter after a lower-case one
	lower          bool // the last letter was lower case
}

func (w *wordShape) see(r rune) {
	switch {
	case 'a' <= r && r <= 'z':
		w.letters++
		w.lower = true
	case 'A' <= r && r <= 'Z':
		w.letters++
		if w.lower {
			w.humps++
		}
		w.lower = false
	case r < utf8.RuneSelf:
		w.odd = w.odd || '0' <= r && r <= '9' || r == '@'
	case unicode.IsLetter(r):
		w.letters++
	default:
		w.odd = w.odd || r == blank || unicode.IsNumber(r)
	}
}

// varies is also true of a long id that happens to contain no digit. Such an id has about one hump
// in four letters, CamelCase one in eight.
func (w *wordShape) varies() bool { return w.odd || w.letters >= 16 && w.humps*6 > w.letters }

// isTerm reports whether a word is no value, although it has a digit.
func isTerm(word string) bool {
	switch word {
	case "UTF-8", "UTF-16", "ISO-8601", "ISO8601", "RFC3339", "E.164", "base64", "Base64", "IPv4", "IPv6", "OAuth2", "SHA-256", "HTTP/1.1", "HTTP/2":
		return true
	}
	return false
}

func isWord(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) }

func isHost(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '.' || r == '-'
}

// isBreaker reports whether r is punctuation between words.
func isBreaker(r rune) bool {
	switch r {
	case '(', ')', '[', ']', '{', '}', '<', '>', ',', ';', '=', '|':
		return true
	}
	return false
}

// isSpecial reports whether r cannot be part of an e-mail address.
func isSpecial(r rune) bool {
	switch r {
	case '(', ')', '[', ']', '<', '>', ',', ';', ':', '\\', '"':
		return true
	}
	return false
}

// closer returns the quote that ends the given one; 0 if open is not an opening quote.
func closer(open rune) rune {
	switch open {
	case '"', '\'', '`':
		return open
	case '“':
		return '”'
	}
	return 0
}
