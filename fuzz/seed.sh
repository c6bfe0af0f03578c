#!/usr/bin/env bash
# Writes a small seed corpus for every fuzz target into fuzz/corpus/: fuzz/seed.sh
#
# IDX files, whole and damaged, plain and gzip; for the kernels and the gradient check, whose inputs are drawn from bytes, all bytes
# alike, bytes that count, and bytes that only look random, in several lengths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

put() { # put TARGET NAME: standard input becomes a seed
    mkdir -p "corpus/$1"
    cat >"corpus/$1/$2"
}

# Three images of 2 x 2, and their labels.
images() { printf '\0\0\10\3\0\0\0\3\0\0\0\2\0\0\0\2\0\1\2\3\4\5\6\7\10\11\12\377'; }
labels() { printf '\0\0\10\1\0\0\0\3\0\1\2'; }

# The first four bytes of `idx` are a number that says which of its four kinds of input follows.
raw() { printf '\0\0\0\0'; cat; }
images | raw | put idx images
labels | raw | put idx labels
images | gzip -nc | raw | put idx images-gzip
images | head -c 20 | raw | put idx truncated
images | gzip -nc | head -c 25 | raw | put idx truncated-gzip
{ images; printf '\0'; } | raw | put idx one-too-many
printf '\0\0\10\3\377\377\377\377\377\377\377\377\377\377\377\377' | raw | put idx oversized
printf '\0\0\15\3\0\0\0\0\0\0\0\0\0\0\0\0' | raw | put idx wrong-type
printf '' | put idx empty

count() { awk -v n="$1" -v step="$2" 'BEGIN { for (i = 0; i < n; i++) printf "\\%o", (i * step) % 256 }'; }
for target in gemm batchnorm gradcheck; do
    for length in 16 64 200; do
        for fill in 0 1 377; do
            printf "$(for ((i = 0; i < length; i++)); do printf '\\%o' "0$fill"; done)" | put "$target" "all-$fill-$length"
        done
        printf "$(count "$length" 1)" | put "$target" "counting-$length"
        # 167 and 256 have no common factor.
        printf "$(count "$length" 167)" | put "$target" "scattered-$length"
    done
done
