// Matrix products of bfloat16 rows with packed weights, for processors with AVX512-BF16 and VBMI, and
// without AMX, which libraries use better; see linear_native.py.
//
// A decode step reads every weight once for a few rows, so memory sets its pace. The weights lie in
// panels of 32 outputs, [inputs / 2][32 outputs][2 inputs], as `vdpbf16ps` takes them: each is read
// once, from one end to the other. Panels are given to threads as these come for them, so that a
// core that other work has taken for a while does not hold up the rest. Each output is summed in
// the order of its inputs, however many rows there are. Where weights are squeezed too
// (squeeze.cpp), products of few rows read those.

#include "kernels.h"

#if HAS_PRODUCTS

#include <immintrin.h>

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int64_t PANEL = 2 * LANES;
constexpr int64_t NARROW_ROWS = 12;  // of a tile over one panel
constexpr int64_t WIDE_ROWS = 6;     // of a tile over two, which reads less per product
constexpr int64_t BLOCK_ROWS = 96;   // rows that stay in a core's cache while panels pass
constexpr int64_t MANY_ROWS = 48;    // from here on wide tiles are faster
constexpr int64_t FETCH_ROWS = 18;   // up to here memory is slower than two tiles a panel
constexpr int64_t FETCH_INPUTS = 16, FETCH_LINES = PANEL * FETCH_INPUTS * sizeof(bfloat16) / 64 / 2;
constexpr int64_t TASKS_A_THREAD = 16;
constexpr int64_t SQUEEZED_ROWS = 10;  // with more, unpacking costs more than memory saves

inline __m512 load(const bfloat16 *from, __mmask16 mask) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(bfloat16 *to, __m512 values, __mmask16 mask) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

// 2^x to 3e-7 of its value: the integer part by the exponent, the rest by a polynomial on
// [-1/2, 1/2], the terms of the series of exp(x ln 2).
inline __m512 power_of_two(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 part = _mm512_sub_ps(x, whole), sum = _mm512_set1_ps(1.5403530e-4f);
    for (float term : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(term));
    return _mm512_scalef_ps(sum, whole);
}

inline __m512 silu(__m512 x) {
    __m512 exp = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp));
}

// Adds to the sums of ROWS rows what two of their inputs give with weights.
template <int64_t ROWS, int64_t BLOCKS>
[[gnu::always_inline]] inline void add(const bfloat16 *from, int64_t stride,
                                       const __m512bh (&weight)[BLOCKS],
                                       __m512 (&acc)[ROWS][BLOCKS]) {
    for (int64_t r = 0; r < ROWS; r++) {
        int32_t pair;
        std::memcpy(&pair, from + r * stride, sizeof pair);
        __m512i both = _mm512_set1_epi32(pair);
        asm("" : "+v"(both));  // in a register: else it is loaded again for each product
        for (int64_t b = 0; b < BLOCKS; b++)
            acc[r][b] = _mm512_dpbf16_ps(acc[r][b], weight[b], (__m512bh)both);
    }
}

// Sums of ROWS rows with PANELS neighbouring panels: sums[row][16 outputs]. If it FETCHES, half as
// many weights as it reads are meanwhile fetched from the address `next` on.
template <int64_t ROWS, int64_t PANELS, bool FETCHES>
void tile(const Product &p, int64_t row, int64_t panel, uintptr_t next, __m512 *sums) {
    constexpr int64_t BLOCKS = 2 * PANELS;
    const bfloat16 *from = p.rows + row * p.row_stride;
    const bfloat16 *weights = p.weights + panel * p.inputs * PANEL;
    __m512 acc[ROWS][BLOCKS];
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t b = 0; b < BLOCKS; b++) acc[r][b] = _mm512_setzero_ps();
    for (int64_t i = 0; i < p.inputs; i += 2) {
        if (FETCHES && i % FETCH_INPUTS == 0)
            for (int64_t n = 0; n < FETCH_LINES; n++, next += 64)
                _mm_prefetch((const char *)next, _MM_HINT_T1);
        __m512bh weight[BLOCKS];
        for (int64_t b = 0; b < BLOCKS; b++)
            weight[b] = (__m512bh)_mm512_loadu_si512(weights + b / 2 * p.inputs * PANEL +
                                                     i * PANEL + b % 2 * PANEL);
        add(from + i, p.row_stride, weight, acc);
    }
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t b = 0; b < BLOCKS; b++) sums[r * BLOCKS + b] = acc[r][b];
}

template <int64_t PANELS, int64_t MOST>
void tile_of(int64_t rows, const Product &p, int64_t row, int64_t panel, uintptr_t next,
             __m512 *sums) {
    if constexpr (MOST > 0) {
        if (rows < MOST) return tile_of<PANELS, MOST - 1>(rows, p, row, panel, next, sums);
        if constexpr (PANELS == 1)
            if (next) return tile<MOST, 1, true>(p, row, panel, next, sums);
        tile<MOST, PANELS, false>(p, row, panel, 0, sums);
    }
}

// As `tile` of one panel, from squeezed weights.
template <int64_t ROWS>
void squeezed_tile(const Product &p, int64_t panel, __m512 *sums) {
    const bfloat16 *from = p.rows;
    const int64_t *offsets = (const int64_t *)p.squeezed + 2 * panel, groups = p.inputs / 4;
    const uint8_t *head = p.squeezed + offsets[0], *at = p.squeezed + offsets[1];
    const int32_t *kept = (const int32_t *)(head + 64);
    const __m512i table = _mm512_loadu_si512(head);
    const __m512i lower_bytes = _mm512_set1_epi16(0x00FF);
    __m512 acc[ROWS][2];
    for (int64_t r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (int64_t g = 0;; g++) {
        for (const int64_t end = *kept++; g < end; g++, at += SQUEEZED_GROUP) {
            __m512i codes = _mm512_loadu_si512(at);
#pragma GCC unroll 2
            for (int64_t half = 0; half < 2; half++, codes = _mm512_srli_epi16(codes, 4)) {
                // only the lower six bits of each byte count, and the table repeats every four
                __m512i upper = _mm512_permutexvar_epi8(codes, table);
                __m512i lower = _mm512_loadu_si512(at + 64 + 64 * half);
                const __m512bh weight[2] = {
                    (__m512bh)_mm512_ternarylogic_epi32(lower_bytes, lower, upper, 0xCA),
                    (__m512bh)_mm512_shldi_epi16(upper, lower, 8)};
                add(from + 4 * g + 2 * half, p.row_stride, weight, acc);
            }
        }
        if (g == groups) break;
        for (int64_t half = 0; half < 2; half++, at += KEPT_GROUP / 2) {
            const __m512bh weight[2] = {(__m512bh)_mm512_loadu_si512(at),
                                        (__m512bh)_mm512_loadu_si512(at + 64)};
            add(from + 4 * g + 2 * half, p.row_stride, weight, acc);
        }
    }
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t b = 0; b < 2; b++) sums[2 * r + b] = acc[r][b];
}

template <int64_t MOST>
void squeezed_tile_of(int64_t rows, const Product &p, int64_t panel, __m512 *sums) {
    if constexpr (MOST > 0) {
        if (rows < MOST) return squeezed_tile_of<MOST - 1>(rows, p, panel, sums);
        squeezed_tile<MOST>(p, panel, sums);
    }
}

inline __mmask16 lanes(int64_t num) {
    return num >= LANES ? __mmask16(0xFFFF) : __mmask16((1 << std::max<int64_t>(num, 0)) - 1);
}

// What comes after the sums of a panel in one row.
inline void finish(const Product &p, int64_t row, int64_t panel, const __m512 *sums) {
    if (p.after == After::GATE) {  // of each panel the first half gates the second
        int64_t at = panel * LANES;
        __mmask16 mask = lanes(p.outputs - at);
        __m512 gate = sums[0], up = sums[1];
        if (p.bias) {
            gate = _mm512_add_ps(gate, load(p.bias + at, mask));
            up = _mm512_add_ps(up, load(p.bias + p.outputs + at, mask));
        }
        store(p.out + row * p.outputs + at, _mm512_mul_ps(silu(gate), up), mask);
        return;
    }
    for (int64_t b = 0; b < 2; b++) {
        int64_t at = panel * PANEL + b * LANES;
        __mmask16 mask = lanes(p.outputs - at);
        if (!mask) return;
        __m512 sum = sums[b];
        if (p.bias) sum = _mm512_add_ps(sum, load(p.bias + at, mask));
        if (p.after == After::ADD)
            sum = _mm512_add_ps(sum, load(p.other + row * p.other_stride + at, mask));
        store(p.out + row * p.outputs + at, sum, mask);
    }
}

// Rows `row` to `end` with `PANELS` panels from `panel` on, in tiles of nearly equal height; of one
// panel, whether the caller goes on with the next.
template <int64_t PANELS, int64_t MOST>
void strip(const Product &p, int64_t row, int64_t end, int64_t panel, bool goes_on) {
    __m512 sums[MOST * 2 * PANELS];
    int64_t num = end - row, parts = (num + MOST - 1) / MOST;
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = row + num * part / parts, height = row + num * (part + 1) / parts - first;
        // the second tile has its weights from the cache and leaves the memory idle
        uintptr_t next = 0;
        if (goes_on && parts == 2 && num <= FETCH_ROWS)
            // half a panel has as many bytes as a panel has weights
            next = uintptr_t(p.weights) + (2 * panel + 2 + part) * p.inputs * PANEL;
        tile_of<PANELS, MOST>(height, p, first, panel, next, sums);
        for (int64_t r = 0; r < height; r++)
            for (int64_t n = 0; n < PANELS; n++)
                finish(p, first + r, panel + n, sums + (r * PANELS + n) * 2);
    }
}

// All rows with one panel of squeezed weights.
void squeezed_strip(const Product &p, int64_t panel) {
    __m512 sums[2 * SQUEEZED_ROWS];
    squeezed_tile_of<SQUEEZED_ROWS>(p.num, p, panel, sums);
    for (int64_t row = 0; row < p.num; row++) finish(p, row, panel, sums + 2 * row);
}

inline int64_t panels_of(int64_t outputs, bool gated) {
    int64_t width = gated ? LANES : PANEL;
    return (outputs + width - 1) / width;
}

}  // namespace

extern "C" int64_t has_products() { return 1; }

// Values of a packed weight.
extern "C" int64_t packed_size(int64_t outputs, int64_t inputs, int64_t gated) {
    return panels_of(outputs, gated) * PANEL * inputs;
}

// Packs weights [outputs, inputs]; with `up` of the same shape, both for GATE.
extern "C" void pack_weight(const bfloat16 *weight, const bfloat16 *up, int64_t outputs,
                            int64_t inputs, bfloat16 *packed) {
    int64_t panels = panels_of(outputs, up != nullptr);
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t lane = 0; lane < PANEL; lane++) {
            int64_t at = up ? panel * LANES + lane % LANES : panel * PANEL + lane;
            const bfloat16 *from = up && lane >= LANES ? up : weight;
            bfloat16 *to = packed + panel * inputs * PANEL + lane * 2;
            for (int64_t i = 0; i < inputs; i++)
                to[i / 2 * 2 * PANEL + i % 2] = at < outputs ? from[at * inputs + i] : bfloat16{0};
        }
}

void product_team(const Product &call) {
    const Product p = call;
    const int64_t panels = panels_of(p.outputs, p.after == After::GATE);
    const int64_t blocks = (p.num + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int64_t at_once = p.num >= MANY_ROWS ? 2 : 1;
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();
#endif
    int64_t size = std::max<int64_t>(at_once, panels / (threads * TASKS_A_THREAD) / 2 * 2);
    const int64_t tasks = (panels + size - 1) / size;
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t row = block * BLOCK_ROWS, end = std::min(p.num, row + BLOCK_ROWS);
            int64_t panel = task * size, last = std::min(panels, panel + size);
            if (p.squeezed && p.num <= SQUEEZED_ROWS)
                for (; panel < last; panel++) squeezed_strip(p, panel);
            else if (at_once == 2)
                for (; panel + 1 < last; panel += 2) strip<2, WIDE_ROWS>(p, row, end, panel, false);
            for (; panel < last; panel++) strip<1, NARROW_ROWS>(p, row, end, panel, panel + 1 < last);
        }
}

extern "C" void product(const Product *call) {
#pragma omp parallel
    product_team(*call);
}

#else

extern "C" int64_t has_products() { return 0; }

#endif
