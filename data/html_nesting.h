// How deep a page nests, told from its text before a parser that recurses sees it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct HtmlScan {
    bool too_deep = false;  // more than max_depth elements stand open at once
    // The page without its closed <svg> elements: drawings of thousands of elements that close themselves,
    // which only a parser can tell from nested ones, and which hold no text that is wanted.
    std::string without_svg;
};

HtmlScan scan_html(std::string_view html, int64_t max_depth);
