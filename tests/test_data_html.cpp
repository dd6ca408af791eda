// The readable text of HTML: what stays, what is left out and counted; nesting is found where it hides and
// not seen where there is none.
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/html.h"

namespace {

TEST(Html, ReadableText) {
    const std::pair<const char*, const char*> cases[] = {
        {"<p>Hello,\n   <b>wor</b>ld</p><p>two</p>", "Hello, world\n\ntwo"},
        {"<title>T</title><h1>Head</h1>text<br>line<div>block</div>after",
         "Head\n\ntext\nline\nblock\nafter"},
        {"a<script>var x = '<p>no</p>';</script>b<style>p{}</style>c<noscript>no</noscript>", "abc"},
        {"<nav>menu</nav><header>h</header><footer>f</footer><button>b</button><main>kept</main>", "kept"},
        {"<form action='/'>all of<div>the page<input></div></form>",
         "all of\nthe page"},  // as ASP.NET has it
        {"<header>site</header><article><header><h1>Title</h1></header>text</article>", "Title\n\ntext"},
        {"<main><header>Title</header>text<header>Part</header>more</main>", "Title\ntext\nPart\nmore"},
        {"<body class='page related' hidden><p>text", "text"},
        {"<main class=toc>text</main>", "text"},
        {"<article class='post nosearch'>text<div class=related>no</div></article>", "text"},
        {"a<svg viewBox='0 0 1 1'><title>t</title><path d='M0'/><style>p{}</style></svg>b", "ab"},
        {"1 <<svg></svg>b>2", "1 <b>2"},
        {"<div class='x navheader y'>no</div><div role=navigation>no</div><p hidden>no</p><p "
         "class='navy'>yes</p>",
         "yes"},
        {"&lt;tag&gt; &amp; &eacute; &#8364; &#x1F600; a&nbsp;b",
         "<tag> & \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 a b"},
        {"<pre>\n  int x;\n\n    y &lt; z\n</pre><p>after", "  int x;\n\n    y < z\n\nafter"},
        {"before<pre>a<span> b</span>\n c</pre>", "before\n\na b\n c"},
        {"<ul><li>one</li><li>two <i>and</i></li></ul>end", "one\ntwo and\n\nend"},
        {"<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>", "k v\n1 2"},
        {"<p>unclosed <b>bold <p>next", "unclosed bold\n\nnext"},
        {"<!-- no --><![CDATA[x]]><p>a<!-- no -->b</p>", "ab"},
        {"", ""},
        {"just text < 5 & more", "just text < 5 & more"},
    };
    for (const auto& [html, text] : cases) {
        HtmlText page;
        EXPECT_EQ(extract_html(html, page), "") << html;
        EXPECT_EQ(page.text, text) << html;
    }
    HtmlText page;
    extract_html("<html><head><title> A \n title </title></head><body>x", page);
    EXPECT_EQ(page.title, "A title");
}

TEST(Html, DroppedTextIsCounted) {
    const std::pair<const char*, int64_t> cases[] = {
        {"<p>all kept", 0},
        {"<nav><ul><li>one</li> <li>two</li></ul></nav><p>x", 6},
        {"<script>var x;</script><style>p{}</style><title>T</title><svg><text>t</text></svg>x", 0},
        {"<footer>1234<script>no</script></footer><div hidden>56</div><p class=toc>7</p>x", 7},
    };
    for (const auto& [html, bytes] : cases) {
        HtmlText page;
        EXPECT_EQ(extract_html(html, page), "") << html;
        EXPECT_EQ(page.dropped_bytes, bytes) << html;
        EXPECT_FALSE(page.text.empty()) << html;
    }
}

std::string repeated(const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
}

TEST(Html, GoodPagesAreNotDeep) {
    const std::pair<const char*, std::string> cases[] = {
        {"void elements", repeated("<source src=a><track><embed><param><img><input>", 3000)},
        {"a drawing", "<svg>" + repeated("<path d='M0'/><use href='#a'/><circle/>", 3000) + "</svg>"},
        {"formulas", repeated("<math><mspace/><mi>x</mi><mprescripts/></math>", 3000)},
        {"comparisons in a script", "<script>" + repeated("if (a<b && c<d) e<f;", 3000) + "</script>"},
        {"tags in strings", "<script>" + repeated("s += '<div>';", 3000) + "</script>"},
        {"a style and a text field",
         "<style>" + repeated("<b>", 3000) + "</style><textarea>" + repeated("<i>", 3000) + "</textarea>"},
        {"a comment", "<!-- " + repeated("<div>", 3000) + " -->"},
        {"attributes", repeated("<i title='a <b> c <b>' x=\"<div>\">i</i>", 3000)},
        {"anchors left open", repeated("<a name=x>", 3000)},
        {"closed with what stands in it", repeated("<div><b><i>x</div>", 3000)},
    };
    for (const auto& [name, html] : cases) {
        HtmlText page;
        EXPECT_EQ(extract_html(html + "<p>after", page), "") << name;
        EXPECT_TRUE(page.text.ends_with("after")) << name << ": " << page.text.substr(0, 100);
    }
}

TEST(Html, HiddenNestingIsFound) {
    const std::pair<const char*, std::string> cases[] = {
        {"end tags that end nothing", repeated("<div></x>", 100'000)},
        {"self-closing that is not", repeated("<div/>", 100'000)},
        {"a quote in an unquoted value", "<i a=b'>" + repeated("<div>", 100'000) + "<i a=b'>"},
        {"a quote as a name", "<i ='>" + repeated("<div>", 100'000) + "<i ='>"},
        {"a comment that ends early", "<!-->" + repeated("<div>", 100'000) + "-->"},
        {"a comment that ends badly", "<!-- --!>" + repeated("<div>", 100'000) + "-->"},
        {"a style that is none", "<math><style>" + repeated("<div>", 100'000)},
        {"a drawing without an end", "<svg><title>" + repeated("<div/>", 100'000)},
        {"around a drawing", repeated("<<svg></svg>div><div>", 100'000)},
    };
    for (const auto& [name, html] : cases) {
        HtmlText page;
        EXPECT_NE(extract_html(html, page).find("nested"), std::string::npos) << name;
    }
    HtmlText page;  // not found by looking at the tags of the page alone
    EXPECT_EQ(extract_html(repeated("<<svg></svg>div>", 100'000), page), "");
    EXPECT_EQ(page.text.substr(0, 10), "<div><div>");
}

TEST(Html, DeepNestingIsRefused) {
    std::string deep;
    for (int i = 0; i < 100'000; ++i) deep += "<div>";
    HtmlText page;
    EXPECT_NE(extract_html(deep, page).find("nested"), std::string::npos);
    std::string flat = "<table>";
    for (int i = 0; i < 20'000; ++i) flat += "<tr><td><b>x</b><br><p>y<li>z";
    EXPECT_EQ(extract_html(flat, page), "") << "unclosed paragraphs and rows are not deep";
}

}  // namespace
