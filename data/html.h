// The readable text of an HTML page: no scripts, styles, buttons or navigation (nav, footer, hidden, a header
// outside of <main> and <article>); block elements end lines, paragraphs are set apart by a blank line, <pre>
// keeps its layout, entities are characters. It judges by elements and well-known class names only; it does
// not guess at boilerplate.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

struct HtmlText {
    std::string title;          // of <title>, one line
    std::string text;           // ends without a newline
    int64_t dropped_bytes = 0;  // of text that was left out as navigation and the like
};

// Returns "" and fills `result`, or the reason why the page is refused. `html` is valid UTF-8.
std::string extract_html(std::string_view html, HtmlText& result);
