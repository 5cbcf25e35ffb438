// Packed bfloat16 weights in 12 bits each, without loss; products.cpp reads them.
//
// Weights of a model differ little in size: of the upper bytes of their values, which hold the sign
// and most of the exponent, 16 make up nearly all. Each lower byte is kept as it is, each upper byte
// as a number of four bits that a table of its panel resolves. (Keeping exponents in fewer bits is
// the idea of DFloat11, arXiv 2504.11651; a code of one width takes one instruction to read.) Four
// inputs with the 32 outputs of a panel are a group; a group that has other upper bytes is kept as it
// was.
//
// In memory: of each panel two offsets in bytes, int64, of its table and of its groups; then of each
//   table      16 upper bytes, four times
//   numbers    of the groups that are kept, int32, and behind them the number of groups
//   groups     [inputs / 4], in their order; one that is kept has its 256 bytes, others
//              64 bytes of codes, of which the lower four bits are of the first two inputs,
//              64 lower bytes for each two inputs
// Codes and lower bytes are in the order in which two instructions make of them the two registers
// that `vdpbf16ps` takes: of the bytes at 2n and 2n + 1 a code belongs to the nth weight of the
// second register and of the first one, a lower byte the other way round.

#include "kernels.h"

#if HAS_PRODUCTS

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t GROUP = 2 * 64;  // weights
constexpr uint8_t NO_CODE = 0xFF;

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The 16 most frequent upper bytes of a panel, and the code of each byte.
struct Coding {
    std::array<uint8_t, 16> bytes;
    alignas(64) std::array<uint8_t, 256> codes;

    Coding(const bfloat16 *panel, int64_t weights) {
        std::array<int32_t, 512> counts{};  // of even and odd weights: fewer wait for each other
        for (int64_t i = 0; i < weights; i++) counts[i % 2 * 256 + (panel[i].bits >> 8)]++;
        std::array<int32_t, 256> order;
        std::iota(order.begin(), order.end(), 0);
        auto count = [&](int32_t byte) { return counts[byte] + counts[256 + byte]; };
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return count(a) > count(b); });
        codes.fill(NO_CODE);
        for (int32_t code = 0; code < 16; code++) {
            bytes[code] = uint8_t(order[code]);
            codes[order[code]] = uint8_t(code);
        }
    }

    __m512i of(__m512i upper) const {
        const __m512i *quarter = (const __m512i *)codes.data();
        __m512i low = _mm512_permutex2var_epi8(quarter[0], upper, quarter[1]);
        __m512i high = _mm512_permutex2var_epi8(quarter[2], upper, quarter[3]);
        return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(upper), high);
    }
};

// A group taken apart. `codes` of the first and of the other two inputs.
struct Parts {
    __m512i codes[2], lower[2];
    bool fits;

    Parts(const bfloat16 *group, const Coding &coding) : fits(true) {
        const __m512i lower_bytes = _mm512_set1_epi16(0x00FF);
        for (int64_t half = 0; half < 2; half++) {
            __m512i first = _mm512_loadu_si512(group + 64 * half);
            __m512i second = _mm512_loadu_si512(group + 64 * half + 32);
            __m512i raised = _mm512_slli_epi16(second, 8), sunk = _mm512_srli_epi16(second, 8);
            lower[half] = _mm512_ternarylogic_epi32(lower_bytes, first, raised, 0xCA);
            codes[half] = coding.of(_mm512_ternarylogic_epi32(lower_bytes, sunk, first, 0xCA));
            fits &= !_mm512_movepi8_mask(codes[half]);
        }
    }

    void write(uint8_t *to) const {
        _mm512_storeu_si512(to, _mm512_or_si512(codes[0], _mm512_slli_epi16(codes[1], 4)));
        _mm512_storeu_si512(to + 64, lower[0]);
        _mm512_storeu_si512(to + 128, lower[1]);
    }
};

}  // namespace

// Bytes of the squeezed form of packed weights, and its offsets.
extern "C" int64_t squeezed_size(const bfloat16 *packed, int64_t panels, int64_t inputs,
                                 int64_t *offsets) {
    const int64_t groups = inputs / 4;
    std::vector<int64_t> all_kept(panels);
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++) {
        const bfloat16 *from = packed + panel * groups * GROUP;
        const Coding coding(from, groups * GROUP);
        for (int64_t g = 0; g < groups; g++)
            all_kept[panel] += !Parts(from + g * GROUP, coding).fits;
    }
    int64_t at = padded(2 * panels * sizeof(int64_t));
    for (int64_t kept : all_kept) {
        *offsets++ = at;
        at += 64 + padded((kept + 1) * sizeof(int32_t));
        *offsets++ = at;
        at += groups * SQUEEZED_GROUP + kept * (KEPT_GROUP - SQUEEZED_GROUP);
    }
    return at;
}

// Writes it behind the offsets, which are there already.
extern "C" void squeeze(const bfloat16 *packed, int64_t panels, int64_t inputs, uint8_t *to) {
    const int64_t groups = inputs / 4;
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t *offsets = (const int64_t *)to + 2 * panel;
        const bfloat16 *from = packed + panel * groups * GROUP;
        uint8_t *table = to + offsets[0], *at = to + offsets[1];
        int32_t *number = (int32_t *)(table + 64);
        const Coding coding(from, groups * GROUP);
        for (int64_t copy = 0; copy < 4; copy++)
            std::copy(coding.bytes.begin(), coding.bytes.end(), table + 16 * copy);
        for (int64_t g = 0; g < groups; g++, from += GROUP) {
            if (Parts parts(from, coding); parts.fits) {
                parts.write(at);
                at += SQUEEZED_GROUP;
            } else {
                std::memcpy(at, from, KEPT_GROUP);
                at += KEPT_GROUP;
                *number++ = int32_t(g);
            }
        }
        *number = int32_t(groups);
    }
}

#endif
