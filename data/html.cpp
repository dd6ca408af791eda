// Walks the tree that gumbo (an HTML5 parser) makes of a page.
#include "data/html.h"

#include <gumbo.h>

#include <algorithm>
#include <memory>

#include "core/error.h"
#include "data/html_nesting.h"

namespace {

// gumbo and the walk below recurse; real pages nest tens of elements deep.
constexpr int64_t kMaxDepth = 2000;

constexpr GumboTag kNoText[] = {
    // nothing to read in them
    GUMBO_TAG_SCRIPT, GUMBO_TAG_STYLE,  GUMBO_TAG_HEAD,     GUMBO_TAG_NOSCRIPT,
    GUMBO_TAG_IFRAME, GUMBO_TAG_OBJECT, GUMBO_TAG_TEMPLATE, GUMBO_TAG_SVG,
    GUMBO_TAG_CANVAS, GUMBO_TAG_AUDIO,  GUMBO_TAG_VIDEO,
};
constexpr GumboTag kApart[] = {
    // text, but not the page's
    GUMBO_TAG_NAV, GUMBO_TAG_HEADER, GUMBO_TAG_FOOTER, GUMBO_TAG_BUTTON, GUMBO_TAG_SELECT, GUMBO_TAG_TEXTAREA,
};
// The page itself: its classes say how it looks and its `hidden` that a script will show it.
constexpr GumboTag kContent[] = {GUMBO_TAG_HTML, GUMBO_TAG_BODY, GUMBO_TAG_MAIN, GUMBO_TAG_ARTICLE};
// Navigation as DocBook, Sphinx and others write it where they use no <nav>.
constexpr std::string_view kDroppedClasses[] = {"navheader", "navfooter", "sphinxsidebar", "related",
                                                "toc",       "nosearch",  "breadcrumbs",   "docnav"};
constexpr GumboTag kParagraphs[] = {
    GUMBO_TAG_P,   GUMBO_TAG_H1,    GUMBO_TAG_H2, GUMBO_TAG_H3,         GUMBO_TAG_H4,
    GUMBO_TAG_H5,  GUMBO_TAG_H6,    GUMBO_TAG_UL, GUMBO_TAG_OL,         GUMBO_TAG_DL,
    GUMBO_TAG_PRE, GUMBO_TAG_TABLE, GUMBO_TAG_HR, GUMBO_TAG_BLOCKQUOTE, GUMBO_TAG_FIGURE,
};
constexpr GumboTag kLines[] = {
    GUMBO_TAG_DIV,     GUMBO_TAG_LI,         GUMBO_TAG_DT,      GUMBO_TAG_DD,      GUMBO_TAG_TR,
    GUMBO_TAG_CAPTION, GUMBO_TAG_BR,         GUMBO_TAG_SECTION, GUMBO_TAG_ARTICLE, GUMBO_TAG_ADDRESS,
    GUMBO_TAG_DETAILS, GUMBO_TAG_FIGCAPTION, GUMBO_TAG_BODY,    GUMBO_TAG_MAIN,    GUMBO_TAG_ASIDE,
    GUMBO_TAG_CENTER,  GUMBO_TAG_SUMMARY,    GUMBO_TAG_LEGEND,  GUMBO_TAG_FORM,    GUMBO_TAG_FIELDSET,
    GUMBO_TAG_HEADER,
};

template <size_t N>
bool contains(const GumboTag (&tags)[N], GumboTag tag) {
    return std::find(std::begin(tags), std::end(tags), tag) != std::end(tags);
}

std::string_view attribute(const GumboElement& element, const char* name) {
    const GumboAttribute* found = gumbo_get_attribute(&element.attributes, name);
    return found == nullptr ? std::string_view() : std::string_view(found->value);
}

bool is_apart(const GumboElement& element, bool in_content) {
    if (contains(kContent, element.tag)) return false;
    // The header of an article is its title.
    if (contains(kApart, element.tag)) return element.tag != GUMBO_TAG_HEADER || !in_content;
    if (element.attributes.length == 0) return false;
    if (attribute(element, "role") == "navigation") return true;
    if (gumbo_get_attribute(&element.attributes, "hidden") != nullptr) return true;
    std::string_view classes = attribute(element, "class");
    while (!classes.empty()) {
        const size_t space = std::min(classes.find(' '), classes.size());
        const std::string_view name = classes.substr(0, space);
        if (std::find(std::begin(kDroppedClasses), std::end(kDroppedClasses), name) !=
            std::end(kDroppedClasses)) {
            return true;
        }
        classes.remove_prefix(std::min(space + 1, classes.size()));
    }
    return false;
}

bool begins_content(const GumboElement& element) {
    return element.tag == GUMBO_TAG_MAIN || element.tag == GUMBO_TAG_ARTICLE;
}

// Bytes of the text under a node, white space between elements not counted.
int64_t text_bytes(const GumboNode& node) {
    if (node.type == GUMBO_NODE_TEXT || node.type == GUMBO_NODE_CDATA) {
        return static_cast<int64_t>(std::string_view(node.v.text.text).size());
    }
    if (node.type != GUMBO_NODE_ELEMENT || contains(kNoText, node.v.element.tag)) return 0;
    int64_t bytes = 0;
    const GumboVector& children = node.v.element.children;
    for (unsigned i = 0; i < children.length; ++i)
        bytes += text_bytes(*static_cast<GumboNode*>(children.data[i]));
    return bytes;
}

// Text with its white space decided late: what separates two words is known only when the second one comes.
class TextBuilder {
public:
    void line_break(int newlines) { newlines_ = std::max(newlines_, newlines); }
    void space() { space_ = true; }
    void add(std::string_view text) {
        size_t i = 0;
        while (i < text.size()) {
            const size_t blank = blank_bytes(text, i);
            if (blank > 0) {
                space_ = true;
                i += blank;
                continue;
            }
            size_t end = i + 1;
            while (end < text.size() && blank_bytes(text, end) == 0) ++end;
            separate();
            out_.append(text, i, end - i);
            i = end;
        }
    }
    void add_verbatim(std::string_view text) {
        if (text.empty()) return;
        separate();
        out_ += text;
    }
    void trim_end() {
        while (!out_.empty() && (out_.back() == '\n' || out_.back() == ' ')) out_.pop_back();
    }
    std::string take() {
        trim_end();
        return std::move(out_);
    }

private:
    static size_t blank_bytes(std::string_view text, size_t i) {
        const char c = text[i];
        if (c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f') return 1;
        return text.substr(i, 2) == "\u00a0" ? 2 : 0;  // no-break space
    }
    void separate() {
        if (!out_.empty()) {
            if (newlines_ > 0) {
                out_.append(static_cast<size_t>(newlines_), '\n');
            } else if (space_ && out_.back() != '\n') {
                out_ += ' ';
            }
        }
        newlines_ = 0;
        space_ = false;
    }
    std::string out_;
    int newlines_ = 0;
    bool space_ = false;
};

void add_pre(const GumboNode& node, std::string& text) {
    if (node.type == GUMBO_NODE_TEXT || node.type == GUMBO_NODE_WHITESPACE || node.type == GUMBO_NODE_CDATA) {
        text += node.v.text.text;
    } else if (node.type == GUMBO_NODE_ELEMENT && !contains(kNoText, node.v.element.tag) &&
               !is_apart(node.v.element, true)) {
        if (node.v.element.tag == GUMBO_TAG_BR) text += '\n';
        const GumboVector& children = node.v.element.children;
        for (unsigned i = 0; i < children.length; ++i)
            add_pre(*static_cast<GumboNode*>(children.data[i]), text);
    }
}

class PageWalk {
public:
    void add(const GumboNode& node, bool in_content) {
        switch (node.type) {
            case GUMBO_NODE_TEXT:
            case GUMBO_NODE_CDATA: out_.add(node.v.text.text); return;
            case GUMBO_NODE_WHITESPACE: out_.space(); return;
            case GUMBO_NODE_ELEMENT: break;
            default: return;  // comments, templates
        }
        const GumboElement& element = node.v.element;
        if (contains(kNoText, element.tag)) return;
        if (is_apart(element, in_content)) {
            dropped_bytes_ += text_bytes(node);
            return;
        }
        const int newlines = contains(kParagraphs, element.tag) ? 2 : contains(kLines, element.tag) ? 1 : 0;
        out_.line_break(newlines);
        if (element.tag == GUMBO_TAG_TD || element.tag == GUMBO_TAG_TH) out_.space();
        if (element.tag == GUMBO_TAG_PRE) {
            std::string text;
            add_pre(node, text);
            while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
            if (text.starts_with('\n')) text.erase(0, 1);
            out_.add_verbatim(text);
        } else {
            const GumboVector& children = element.children;
            for (unsigned i = 0; i < children.length; ++i)
                add(*static_cast<GumboNode*>(children.data[i]), in_content || begins_content(element));
        }
        out_.line_break(newlines);
    }
    std::string take_text() { return out_.take(); }
    int64_t dropped_bytes() const { return dropped_bytes_; }

private:
    TextBuilder out_;
    int64_t dropped_bytes_ = 0;
};

std::string find_title(const GumboNode& root) {
    for (const GumboNode* node = &root; node != nullptr;) {
        const GumboVector& children = node->v.element.children;
        const GumboNode* next = nullptr;
        for (unsigned i = 0; i < children.length; ++i) {
            const auto* child = static_cast<GumboNode*>(children.data[i]);
            if (child->type != GUMBO_NODE_ELEMENT) continue;
            if (child->v.element.tag == GUMBO_TAG_HEAD) next = child;
            if (child->v.element.tag != GUMBO_TAG_TITLE) continue;
            std::string text;
            add_pre(*child, text);
            TextBuilder line;
            line.add(text);
            return line.take();
        }
        node = next;
    }
    return {};
}

}  // namespace

std::string extract_html(std::string_view html, HtmlText& result) {
    const HtmlScan scan = scan_html(html, kMaxDepth);
    if (scan.too_deep) return cat({"HTML nested more than ", kMaxDepth, " elements deep"});
    const auto destroy = [](GumboOutput* output) { gumbo_destroy_output(&kGumboDefaultOptions, output); };
    const std::unique_ptr<GumboOutput, decltype(destroy)> page(
        gumbo_parse_with_options(&kGumboDefaultOptions, scan.without_svg.data(), scan.without_svg.size()),
        destroy);
    if (page == nullptr || page->root == nullptr) return "gumbo could not parse it";
    result.title = find_title(*page->root);
    PageWalk walk;
    walk.add(*page->root, false);
    result.text = walk.take_text();
    result.dropped_bytes = walk.dropped_bytes();
    return {};
}
