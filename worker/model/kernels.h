// What the files of the CPU kernels share: types, and what is done to one row or one head.
//
// A function that ends in `_team` is called by every thread of a parallel region: they share its
// work, and all of it is done when it returns. Outside of a region the caller does it alone.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__) && \
    defined(__AVX512VBMI2__) && !defined(__AMX_BF16__)
#define HAS_PRODUCTS 1
#else
#define HAS_PRODUCTS 0
#endif

// What is computed at once.
constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void store(float &to, float value) { to = value; }

inline void store(bfloat16 &to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // to nearest, ties to even; a not-a-number stays one
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 64 : rounded);
}

// RMSNorm of `width` values; `from` and `to` may be one.
template <typename T>
inline void normalise(const T *from, const T *weight, T *to, int64_t width, float eps) {
    float sum = 0;
    for (int64_t i = 0; i < width; i++) sum += load(from[i]) * load(from[i]);
    float scale = 1.0f / std::sqrt(sum / float(width) + eps);
    for (int64_t i = 0; i < width; i++) store(to[i], load(from[i]) * scale * load(weight[i]));
}

// Rotates a head in place by tables of both halves, as transformers' `apply_rotary_pos_emb`.
template <typename T>
inline void turn(T *head, const T *cos, const T *sin, int64_t dim) {
    int64_t half = dim / 2;
    T *low = head, *high = head + half;
    for (int64_t i = 0; i < half; i++) {
        float a = load(low[i]), b = load(high[i]);
        store(low[i], a * load(cos[i]) - b * load(sin[i]));
        store(high[i], b * load(cos[half + i]) + a * load(sin[half + i]));
    }
}

// Where a layer's keys [heads, num_blocks, dim, block_size] and values [heads, num_blocks,
// block_size, dim] lie.
template <typename T>
struct Pool {
    T *keys, *values;
    int64_t num_blocks, block_size;

    // Of a slot's key the next dimension is `block_size` further on.
    T *key(int64_t head, int64_t slot, int64_t dim) const {
        return keys + (head * num_blocks + slot / block_size) * dim * block_size + slot % block_size;
    }

    T *value(int64_t head, int64_t slot, int64_t dim) const {
        return values + (head * num_blocks * block_size + slot) * dim;
    }

    void put_key(const T *from, int64_t head, int64_t slot, int64_t dim) const {
        T *to = key(head, slot, dim);
        for (int64_t i = 0; i < dim; i++) to[i * block_size] = from[i];
    }

    void put_value(const T *from, int64_t head, int64_t slot, int64_t dim) const {
        std::memcpy(value(head, slot, dim), from, dim * sizeof(T));
    }

    // A key lies in as many lines of memory as it has dimensions, or half of that: waiting for them
    // one by one takes longer than all that is computed for a row.
    void fetch(int64_t head, int64_t slot, int64_t dim) const {
        const T *to = key(head, slot, dim);
        for (int64_t i = 0; i < dim; i++) __builtin_prefetch(to + i * block_size, 1);
        const T *next = value(head, slot, dim);
        for (int64_t i = 0; i < dim; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + i, 1);
    }
};

// Attention of tasks: consecutive rows of one sequence, of which each sees one position more than
// the one before it. kernels.cpp.
template <typename T>
struct Attention {
    const T *query;
    T *out;
    const T *keys;              // as in Pool
    const T *values;
    const int32_t *first, *count; // rows of each task: where they begin, how many
    const int32_t *end;         // positions that its first row sees: those before `end`
    const int32_t *table;       // blocks of each task, `table_width` apart
    int64_t num, heads, kv_heads, dim, value_dim, num_blocks, block_size, table_width;
    int64_t window;             // positions that a row sees at most, 0 for all
    int64_t query_row, query_head, out_row, out_head; // strides
    float scale, softcap; // softcap 0 for none
};

template <typename T>
void attend_team(const Attention<T> &call);

enum class After : int64_t { NOTHING, ADD, GATE };

// Bytes of four inputs with the outputs of a panel, squeezed and not; see squeeze.cpp.
constexpr int64_t SQUEEZED_GROUP = 3 * 64, KEPT_GROUP = 4 * 64;

// A product of rows with a packed weight. products.cpp.
struct Product {
    const bfloat16 *rows;     // [num, inputs], `row_stride` apart
    const bfloat16 *weights;  // packed
    const uint8_t *squeezed;  // the same in 12 bits each, for few rows; or null
    const bfloat16 *bias;     // [outputs], for GATE twice as many; or null
    const bfloat16 *other;    // [num, outputs], `other_stride` apart; for ADD, may be `out`
    bfloat16 *out;            // [num, outputs], dense
    int64_t num, inputs, outputs, row_stride, other_stride;
    After after;
};

void product_team(const Product &call);
