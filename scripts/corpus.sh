#!/bin/bash
# The demo's corpus: about 17 MB of English under four licences, from the distribution's own packages (downloaded and
# unpacked, never installed), with the sources.json that build/curate reads.
#   scripts/corpus.sh DEST               fetches nothing when DEST is complete
#   scripts/corpus.sh --from DIR DEST    sources.json for your own .txt .md .html .jsonl(.zst) files in DIR
set -euo pipefail
export LC_ALL=C  # apt's words and awk's numbers are read below

# Raise it when what is taken from a package changes: corpora made by an older recipe are made again.
recipe=1

fail() { echo "error: corpus: $1  hint: $2" >&2; exit "${3:-2}"; }
json() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; 1s/^/"/; $s/$/"/'; }

if [ "${1:-}" = --from ]; then
    [ $# = 3 ] || fail "--from needs a directory and a destination" "scripts/corpus.sh --from DIR DEST"
    [ -e "$2" ] || fail "$2 is not there" "name a directory of .txt .md .html .jsonl files"
    mkdir -p "$3"
    rm -f "$3/.recipe"  # whatever DEST was, it is the packages' corpus no longer
    from=$(realpath "$2")
    {
        printf '[\n  {"name": "user", "path": %s,\n' "$(json "$from")"
        printf '   "license": "LicenseRef-user", "consent": "own", "origin": %s}\n]\n' "$(json "$from")"
    } >"$3/sources.json"
    echo "corpus: $3/sources.json names $from"
    exit 0
fi
[ $# = 1 ] || fail "give one destination" "scripts/corpus.sh DEST"
case $1 in -*) fail "unknown flag $1" "scripts/corpus.sh DEST, or --from DIR DEST" ;; esac
dest=$1
if [ "$(cat "$dest/.recipe" 2>/dev/null)" = "$recipe" ] && [ -f "$dest/sources.json" ]; then
    echo "corpus: $dest is complete"
    exit 0
fi
for tool in apt-get apt-cache dpkg-deb; do
    command -v $tool >/dev/null || fail "$tool is not there: the corpus comes from Debian packages" \
        "make demo CORPUS=DIR with your own texts"
done

# ---- packages: name, and what is taken from it -----------------------------------------------------------------------
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \(.*\)/\1/p' | grep -v '(none)' || true; }
if [ -z "$(candidate jargon-text)" ]; then
    echo "corpus: apt has no package lists, asking for them"
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq || true
    elif command -v sudo >/dev/null; then
        sudo apt-get update -qq || true
    fi
    [ -n "$(candidate jargon-text)" ] || fail "apt knows no package jargon-text" \
        "as root: apt-get update (Debian's main archive), or make demo CORPUS=DIR"
fi
postgresql=$(apt-cache pkgnames postgresql-doc- | grep -E '^postgresql-doc-[0-9]+$' | sort -V | tail -n 1)
packages=(bible-kjv bible-kjv-text jargon-text perl-doc "${postgresql:-postgresql-doc-15}" debian-reference-en
    developers-reference)
# The program that unpacks the Bible's own format wants libreadline: bring it along where it is not installed.
ldconfig -p 2>/dev/null | grep -q 'libreadline\.so\.8' || PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null |
    grep -q 'libreadline\.so\.8' || packages+=("$([ -n "$(candidate libreadline8t64)" ] && echo libreadline8t64 || echo libreadline8)")

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$(dirname "$(realpath -m "$dest")")/.corpus-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/deb" "$work/root" "$work/out/licenses"
echo "corpus: downloading ${#packages[@]} packages (about 15 MB)"
# As root apt would drop to a user who may not write here, and say so: stay.
sandbox=()
[ "$(id -u)" = 0 ] && sandbox=(-o APT::Sandbox::User=root)
if ! (cd "$work/deb" && apt-get "${sandbox[@]}" -qq -o Acquire::Retries=2 download "${packages[@]}" >"$work/log" 2>&1); then
    grep -E '^(E|Err)' "$work/log" | head -n 5 >&2 || true
    fail "a package could not be downloaded" "apt-get update, look at the network; or make demo CORPUS=DIR" 1
fi
declare -A origin
for deb in "$work"/deb/*.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    origin[$name]="Debian package $name $(dpkg-deb -f "$deb" Version)"
    dpkg-deb -x "$deb" "$work/root"
    # SPDX terms below are read from these files.
    cp -L "$work/root/usr/share/doc/$name/copyright" "$work/out/licenses/$name" 2>/dev/null || true
done

# ---- the King James Bible, a file a chapter --------------------------------------------------------------------------
cd "$work/root"
mkdir -p "$work/out/kjv"
library=$(dirname "$(find . -name 'libreadline.so.8*' | head -n 1)")
LD_LIBRARY_PATH=$library usr/bin/bible -p usr/lib -l1000000 gen1:1-rev22:21 </dev/null | awk -v out="$work/out/kjv" '
    /^[^ ].* [0-9]+$/ {  # "1 Samuel 3" opens a chapter
        close(file)
        if (!(substr($0, 1, length($0) - length($NF) - 1) in books)) number++
        books[substr($0, 1, length($0) - length($NF) - 1)] = 1
        book = tolower(substr($0, 1, length($0) - length($NF) - 1))
        gsub(/ /, "-", book)
        file = sprintf("%s/%02d-%s-%03d.txt", out, number, book, $NF)
        print > file
        next
    }
    file != "" { sub(/^ +/, ""); print > file }'

# ---- the Jargon File --------------------------------------------------------------------------------------------------
mkdir -p "$work/out/jargon"
zcat usr/share/doc/jargon-text/jargon.txt.gz | sed 's/^   //' >"$work/out/jargon/jargon.txt"

# ---- Perl's manual: its tutorials and guides; POD made plain ----------------------------------------------------------
# Left out: release notes, tables of Unicode and of contents, the C interface's lists, ports, other languages.
mkdir -p "$work/out/perl"
for pod in usr/share/perl/*/pod/*.pod; do
    name=$(basename "$pod" .pod)
    case $name in
        *delta | perltoc | perluniprops | perlapi | perlintern | perlmodlib | perlcn | perljp | perlko | perltw) continue ;;
        perlgpl | perlartistic | perlhist | perlebcdic) continue ;;
        perlaix | perlamiga | perlandroid | perlbs2000 | perlcygwin | perlfreebsd | perlhaiku | perlhpux) continue ;;
        perlhurd | perlirix | perllinux | perlmacosx | perlopenbsd | perlos2 | perlos390 | perlos400) continue ;;
        perlplan9 | perlqnx | perlriscos | perlsolaris | perlsynology | perltru64 | perlvms | perlvos | perlwin32) continue ;;
    esac
    perl -0777 -ne '
        s/\r//g;
        s/^=begin\b.*?^=end\b[^\n]*\n//msg;
        s/^=for\b.*?\n\n//msg;
        s/^=(?:encoding|over|back|cut|pod)\b[^\n]*\n//mg;
        s/^=(?:head\d|item)\b[ \t]*(?:\*[ \t]*\n*)?//mg;
        1 while s{([A-Z])(?:<<+\s+((?:(?!<<).)*?)\s+>>+|<(?!<)([^<>]*)>)}{plain($1, defined $2 ? $2 : $3)}gse;
        tr/\x01\x02/<>/;
        s/\n{3,}/\n\n/g;
        s/^\n+//;
        print;
        sub plain {  # brackets that stay are kept out of the way of the next round
            my ($code, $text) = @_;
            return "" if $code eq "X" || $code eq "Z";
            my %character = (lt => "\x01", gt => "\x02", sol => "/", verbar => "|");
            return exists $character{$text} ? $character{$text} : $text if $code eq "E";
            $text =~ s{^([^|]*)\|.*$}{$1}s if $code eq "L";
            $text =~ tr/<>/\x01\x02/;
            return $text;
        }' "$pod" >"$work/out/perl/$name.txt"
done

# ---- HTML: PostgreSQL's manual, Debian's guides -----------------------------------------------------------------------
copy_html() { # FROM... DEST
    mkdir -p "${@: -1}"
    find "${@:1:$#-1}" -type f -name '*.html' ! -name 'bookindex.html' ! -name 'genindex.html' ! -name 'search.html' \
        ! -name 'sql-keywords-appendix.html' ! -name 'release*.html' -exec cp -t "${@: -1}" {} +
}
copy_html usr/share/doc/"${postgresql:-postgresql-doc-15}"/html "$work/out/postgresql"
copy_html usr/share/debian-reference "$work/out/debian-reference"
copy_html usr/share/developers-reference "$work/out/developers-reference"
cd - >/dev/null

# ---- sources.json -----------------------------------------------------------------------------------------------------
# Licences as the packages' copyright files state them (kept in DEST/licenses):
#   bible-kjv-text  "The copyright for the King James Version text of the Bible is expired"
#   jargon-text     "This document (the Jargon File) is in the public domain"
#   perl-doc        "License: GPL-1+ or Artistic"           postgresql-doc  "License: PostgreSQL"
#   debian-reference-en, developers-reference   the GNU General Public License, version 2 or any later version
sources=()
add_source() { # NAME PACKAGE LICENSE
    [ -n "$(find "$work/out/$1" -type f -size +0 -print -quit)" ] || fail "package $2 has no text where it was expected" \
        "report it with the version: ${origin[$2]:-not fetched}" 1
    sources+=("  {\"name\": \"$1\", \"path\": \"$1\", \"license\": \"$3\", \"consent\": \"license\",
   \"origin\": \"${origin[$2]}\", \"lang\": \"en\"}")
}
add_source kjv bible-kjv-text LicenseRef-public-domain
add_source jargon jargon-text LicenseRef-public-domain
add_source perl perl-doc "GPL-1.0-or-later OR Artistic-1.0-Perl"
add_source postgresql "${postgresql:-postgresql-doc-15}" PostgreSQL
add_source debian-reference debian-reference-en GPL-2.0-or-later
add_source developers-reference developers-reference GPL-2.0-or-later
{
    echo '['
    for i in "${!sources[@]}"; do
        [ "$i" = 0 ] || echo ','
        printf '%s' "${sources[$i]}"
    done
    printf '\n]\n'
} >"$work/out/sources.json"
echo "$recipe" >"$work/out/.recipe"

# Whole or not at all: DEST is replaced only now.
rm -rf "$dest"
mv "$work/out" "$dest"
echo "corpus: $(find "$dest" -type f | wc -l) files, $(du -sh --apparent-size "$dest" | cut -f1) in $dest"
