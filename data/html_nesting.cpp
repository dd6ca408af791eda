// Follows the HTML standard's tokenizer (13.2.5) for what hides or ends a tag: quotes, comments, raw text;
// and keeps the open elements in a stack as its tree construction (13.2.6) would, but for those that close
// themselves or each other, which are left out. Where it must guess it guesses deeper.
#include "data/html_nesting.h"

#include <algorithm>
#include <cctype>

namespace {

constexpr auto npos = std::string_view::npos;

// Void elements, and those that the next of their kind or their container's end closes.
constexpr std::string_view kShallow[] = {
    "area",  "base",  "basefont", "bgsound", "br",   "col",   "embed",  "frame",  "hr",
    "img",   "input", "keygen",   "link",    "meta", "param", "source", "track",  "wbr",
    "p",     "li",    "td",       "th",      "tr",   "dt",    "dd",     "option", "tbody",
    "thead", "tfoot", "colgroup", "rt",      "rp",   "html",  "head",   "body",   "optgroup",
};
// An end tag of any other name does not reach past these (the standard's "special").
constexpr std::string_view kSpecial[] = {
    "address", "applet",   "article",  "aside",   "blockquote", "button",     "caption",  "center",
    "details", "dir",      "div",      "dl",      "fieldset",   "figcaption", "figure",   "footer",
    "form",    "frameset", "h1",       "h2",      "h3",         "h4",         "h5",       "h6",
    "header",  "hgroup",   "iframe",   "listing", "main",       "marquee",    "menu",     "nav",
    "noembed", "noframes", "noscript", "object",  "ol",         "plaintext",  "pre",      "script",
    "section", "select",   "style",    "summary", "table",      "template",   "textarea", "title",
    "ul",      "xmp",      "svg",      "math",
};
constexpr std::string_view kRawText[] = {"script", "style",  "textarea", "title",
                                         "xmp",    "iframe", "noembed",  "noframes"};

template <size_t N>
bool contains(const std::string_view (&names)[N], std::string_view name) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f'; }

struct Tag {
    std::string name;  // small letters; "" for comments and the like
    bool closes = false, self_closing = false;
    size_t begin = npos, end = npos;  // [begin, end) in the page
};

// The end of a tag whose name ends at `at`: one past its '>', or the page's end. Only a quote that opens an
// attribute's value hides a '>'.
size_t end_of_tag(std::string_view html, size_t at) {
    enum { before_name, name, after_name, before_value, quoted, unquoted } state = before_name;
    char quote = 0;
    for (; at < html.size(); ++at) {
        const char c = html[at];
        if (state == quoted) {
            if (c == quote) state = before_name;
        } else if (c == '>') {
            return at + 1;
        } else if (state == before_value) {
            if (c == '"' || c == '\'') {
                state = quoted;
                quote = c;
            } else if (!is_space(c)) {
                state = unquoted;
            }
        } else if (state == unquoted) {
            if (is_space(c)) state = before_name;
        } else if (is_space(c)) {
            if (state == name) state = after_name;
        } else if (c == '/') {
            state = before_name;
        } else if (c == '=' && state != before_name) {
            state = before_value;
        } else {
            state = name;
        }
    }
    return at;
}

// One past the end of the comment whose text begins at `at`.
size_t end_of_comment(std::string_view html, size_t at) {
    for (at = html.find("--", at); at != npos; at = html.find("--", at + 1)) {
        if (html.substr(at + 2, 1) == ">") return at + 3;
        if (html.substr(at + 2, 2) == "!>") return at + 4;
    }
    return html.size();
}

// The next tag or comment at or after `from`; begin is npos when there is none.
Tag next_tag(std::string_view html, size_t from) {
    for (size_t at = html.find('<', from); at != npos; at = html.find('<', at + 1)) {
        Tag tag;
        tag.begin = at;
        tag.closes = html.substr(at + 1, 1) == "/";
        size_t name = at + 1 + tag.closes;
        if (name < html.size() && is_letter(html[name])) {
            for (; name < html.size() && !is_space(html[name]) && html[name] != '/' && html[name] != '>';
                 ++name)
                tag.name += static_cast<char>(std::tolower(static_cast<unsigned char>(html[name])));
            tag.end = end_of_tag(html, name);
            tag.self_closing = tag.end >= 2 && html[tag.end - 1] == '>' && html[tag.end - 2] == '/';
            return tag;
        }
        const bool comment = html.substr(at, 4) == "<!--";
        if (comment || tag.closes || html.substr(at + 1, 1) == "!" || html.substr(at + 1, 1) == "?") {
            tag.end =
                comment ? end_of_comment(html, at + 2) : std::min(html.find('>', at), html.size() - 1) + 1;
            return tag;
        }
    }
    return {};
}

// Where the raw text of element `name` ends: at its end tag, else with the page.
size_t end_of_raw_text(std::string_view html, size_t from, std::string_view name) {
    for (size_t at = html.find("</", from); at != npos; at = html.find("</", at + 2)) {
        const std::string_view candidate = html.substr(at + 2, name.size() + 1);
        const bool same = candidate.size() > name.size() &&
                          std::equal(name.begin(), name.end(), candidate.begin(), [](char a, char b) {
                              return a == std::tolower(static_cast<unsigned char>(b));
                          });
        if (same && (is_space(candidate.back()) || candidate.back() == '/' || candidate.back() == '>'))
            return at;
    }
    return html.size();
}

// One past the </svg> that closes the <svg> before `from`; npos when nothing does.
size_t end_of_svg(std::string_view html, size_t from) {
    int64_t depth = 1;
    for (Tag tag = next_tag(html, from); tag.begin != npos; tag = next_tag(html, tag.end)) {
        if (tag.name != "svg" || tag.self_closing) continue;
        depth += tag.closes ? -1 : 1;
        if (depth == 0) return tag.end;
    }
    return npos;
}

class OpenElements {
public:
    void open(const Tag& tag) {
        const bool foreign = tag.name == "svg" || tag.name == "math";
        if (contains(kShallow, tag.name) || (foreign && tag.self_closing)) return;
        if (tag.name == "a") {  // a link ends the link before it, wherever that stands
            const auto before = std::find(names_.begin(), names_.end(), tag.name);
            if (before != names_.end()) names_.erase(before);
        }
        names_.push_back(tag.name);
    }
    void close(const Tag& tag) {
        const bool special = contains(kSpecial, tag.name);
        for (size_t i = names_.size(); i-- > 0;) {
            if (names_[i] == tag.name) return names_.resize(i);
            if (!special && contains(kSpecial, names_[i])) return;
        }
    }
    // Inside these the names of raw text elements mean something else.
    bool raw_text_possible() const {
        return std::none_of(names_.begin(), names_.end(), [](const std::string& name) {
            return name == "svg" || name == "math" || name == "select";
        });
    }
    int64_t depth() const { return static_cast<int64_t>(names_.size()); }

private:
    std::vector<std::string> names_;
};

}  // namespace

HtmlScan scan_html(std::string_view html, int64_t max_depth) {
    HtmlScan scan;
    OpenElements elements;
    size_t copied = 0;
    bool svg_may_close = true;  // one that does not would be looked for again and again
    for (Tag tag = next_tag(html, 0); tag.begin != npos; tag = next_tag(html, tag.end)) {
        if (tag.name == "svg" && !tag.closes && !tag.self_closing && svg_may_close) {
            const size_t end = end_of_svg(html, tag.end);
            if (end != npos) {
                scan.without_svg += html.substr(copied, tag.begin - copied);
                scan.without_svg += "<!---->";  // what stands around it must not become one tag
                copied = tag.end = end;
                continue;
            }
            svg_may_close = false;
        }
        if (tag.name.empty()) continue;
        if (tag.closes) {
            elements.close(tag);
        } else if (contains(kRawText, tag.name) && elements.raw_text_possible()) {
            tag.end = end_of_raw_text(html, tag.end, tag.name);
        } else if (tag.name == "plaintext" && elements.raw_text_possible()) {
            break;
        } else {
            elements.open(tag);
            if (elements.depth() > max_depth) {
                scan.too_deep = true;
                return scan;
            }
        }
    }
    scan.without_svg += html.substr(copied);
    return scan;
}
