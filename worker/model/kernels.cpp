// What torch has no fused operation for on a CPU, in float32 and bfloat16; see kernels.py.
//
// Plain loops that a compiler turns into vector code. All arithmetic is in float32.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

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

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // multiplications below which waking one costs more

// Normalises each of `heads` runs of `width` values in each row; `rows` and `out` may be one.
template <typename T>
void rms_norm(const T *rows, const T *weight, T *out, int64_t num, int64_t heads, int64_t width,
              int64_t stride, float eps) {
#pragma omp parallel for if (num * heads * width > WORTH_A_THREAD)
    for (int64_t at = 0; at < num * heads; at++) {
        int64_t offset = at / heads * stride + at % heads * width;
        const T *from = rows + offset;
        T *to = out + offset;
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += load(from[i]) * load(from[i]);
        float scale = 1.0f / std::sqrt(sum / float(width) + eps);
        for (int64_t i = 0; i < width; i++) store(to[i], load(from[i]) * scale * load(weight[i]));
    }
}

// Rotates `heads` heads of each row in place, as transformers' `apply_rotary_pos_emb`.
template <typename T>
void rotate(T *rows, const T *cos, const T *sin, int64_t num, int64_t heads, int64_t dim,
            int64_t stride) {
    int64_t half = dim / 2;
#pragma omp parallel for if (num * heads * dim > WORTH_A_THREAD)
    for (int64_t row = 0; row < num; row++) {
        const T *c = cos + row * dim, *s = sin + row * dim;
        for (int64_t head = 0; head < heads; head++) {
            T *low = rows + row * stride + head * dim, *high = low + half;
            for (int64_t i = 0; i < half; i++) {
                float a = load(low[i]), b = load(high[i]);
                store(low[i], a * load(c[i]) - b * load(s[i]));
                store(high[i], b * load(c[half + i]) + a * load(s[half + i]));
            }
        }
    }
}

// Puts keys into the slots of a pool [heads, num_blocks, dim, block_size].
template <typename T>
void put_keys(const T *rows, T *pool, const int64_t *slots, int64_t num, int64_t heads,
              int64_t dim, int64_t num_blocks, int64_t block_size, int64_t row_stride,
              int64_t head_stride) {
    for (int64_t row = 0; row < num; row++)
        for (int64_t head = 0; head < heads; head++) {
            const T *from = rows + row * row_stride + head * head_stride;
            int64_t block = head * num_blocks + slots[row] / block_size;
            T *to = pool + block * dim * block_size + slots[row] % block_size;
            for (int64_t i = 0; i < dim; i++) to[i * block_size] = from[i];
        }
}

// Puts values into the slots of a pool [heads, num_blocks, block_size, dim].
template <typename T>
void put_values(const T *rows, T *pool, const int64_t *slots, int64_t num, int64_t heads,
                int64_t dim, int64_t num_blocks, int64_t block_size, int64_t row_stride,
                int64_t head_stride) {
    for (int64_t row = 0; row < num; row++)
        for (int64_t head = 0; head < heads; head++)
            std::memcpy(pool + (head * num_blocks * block_size + slots[row]) * dim,
                        rows + row * row_stride + head * head_stride, dim * sizeof(T));
}

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

constexpr float NOTHING = -1e30f;  // a score whose share is 0; -ffast-math knows no infinity

template <typename T>
struct Attention {
    const T *query;
    T *out;
    const T *keys;              // [kv_heads, num_blocks, dim, block_size]
    const T *values;            // [kv_heads, num_blocks, block_size, value_dim]
    const int32_t *rows;        // which rows of query and out
    const int32_t *table;       // blocks of each, `table_width` apart
    const int32_t *first, *end; // positions that each sees
    int64_t num, heads, kv_heads, dim, value_dim, num_blocks, block_size, table_width;
    int64_t query_row, query_head, out_row, out_head; // strides
    float scale, softcap; // softcap 0 for none

    // One query row and one key head: scores of its group block by block, softmax, values.
    // DIM and BLOCK are the sizes where they are known to the compiler, else 0.
    template <int64_t DIM, int64_t BLOCK>
    void group(int64_t at, int64_t kv_head) const {
        const int64_t dim = DIM ? DIM : this->dim, value_dim = DIM ? DIM : this->value_dim;
        const int64_t size = BLOCK ? BLOCK : block_size;
        const int64_t group = heads / kv_heads;
        const int64_t from = first[at] / size, blocks = (end[at] - 1) / size + 1 - from;
        const int64_t length = blocks * size;
        const int64_t wide = dim > value_dim ? dim : value_dim;
        static thread_local std::vector<float> scratch;
        scratch.resize(group * (length + wide) + wide * size);
        float *scores = scratch.data(), *mine = scores + group * length;
        float *tile = mine + group * wide;
        const int32_t *used = table + at * table_width + from;

        const T *q = query + rows[at] * query_row + kv_head * group * query_head;
        for (int64_t j = 0; j < group; j++)
            for (int64_t i = 0; i < dim; i++)
                mine[j * dim + i] = load(q[j * query_head + i]) * scale;
        for (int64_t b = 0; b < blocks; b++) {
            const T *key = keys + (kv_head * num_blocks + used[b]) * dim * size;
            for (int64_t i = 0; i < dim * size; i++) tile[i] = load(key[i]);
            for (int64_t j = 0; j < group; j += 8)
                several<8>(group - j, [&](auto num) {
                    multiply<DIM, BLOCK, num()>(mine + j * dim, tile, scores + j * length + b * size,
                                                dim, size, length);
                });
        }
        for (int64_t j = 0; j < group; j++) {
            float *row = scores + j * length;
            if (softcap != 0)
                for (int64_t t = 0; t < length; t++)
                    row[t] = softcap * std::tanh(row[t] / softcap);
            for (int64_t t = 0; t < first[at] - from * size; t++) row[t] = NOTHING;
            for (int64_t t = end[at] - from * size; t < length; t++) row[t] = NOTHING;
            softmax(row, length);
        }
        for (int64_t i = 0; i < group * value_dim; i++) mine[i] = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const T *value = values + (kv_head * num_blocks + used[b]) * size * value_dim;
            for (int64_t i = 0; i < size * value_dim; i++) tile[i] = load(value[i]);
            for (int64_t j = 0; j < group; j += 4)
                several<4>(group - j, [&](auto num) {
                    accumulate<BLOCK, DIM, num()>(scores + j * length + b * size, tile,
                                                  mine + j * value_dim, size, value_dim, length);
                });
        }
        T *to = out + rows[at] * out_row + kv_head * group * out_head;
        for (int64_t j = 0; j < group; j++)
            for (int64_t i = 0; i < value_dim; i++)
                store(to[j * out_head + i], mine[j * value_dim + i]);
    }

    // Calls `work` with min(num, MOST) as a constant: sums of several heads side by side, as each
    // addition waits for the one before it.
    template <int64_t MOST, typename Work>
    static void several(int64_t num, Work work) {
        if constexpr (MOST > 1) {
            if (num < MOST) return several<MOST - 1>(num, work);
        }
        work(std::integral_constant<int64_t, MOST>());
    }

    // Scores of NUM queries [NUM][dim] and the keys of a block, tile[dim][size], `length` apart.
    template <int64_t DIM, int64_t BLOCK, int64_t NUM>
    static void multiply(const float *queries, const float *tile, float *scores, int64_t dim,
                         int64_t size, int64_t length) {
        if constexpr (DIM != 0 && BLOCK == LANES) {
            Lanes sums[NUM] = {};
            for (int64_t i = 0; i < DIM; i++) {
                Lanes keys;
                std::memcpy(&keys, tile + i * BLOCK, sizeof keys);
                for (int64_t n = 0; n < NUM; n++) sums[n] += queries[n * DIM + i] * keys;
            }
            for (int64_t n = 0; n < NUM; n++)
                std::memcpy(scores + n * length, &sums[n], sizeof sums[n]);
        } else {
            for (int64_t n = 0; n < NUM; n++) {
                float *to = scores + n * length;
                for (int64_t t = 0; t < size; t++) to[t] = 0;
                for (int64_t i = 0; i < dim; i++)
                    for (int64_t t = 0; t < size; t++)
                        to[t] += queries[n * dim + i] * tile[i * size + t];
            }
        }
    }

    // result[n][c] += sum over t of weights[n][t] * tile[t][c], the weights `length` apart.
    template <int64_t BLOCK, int64_t DIM, int64_t NUM>
    static void accumulate(const float *weights, const float *tile, float *result, int64_t size,
                           int64_t dim, int64_t length) {
        if constexpr (BLOCK != 0 && DIM != 0) {
            for (int64_t start = 0; start < DIM; start += 2 * LANES) {
                Lanes sums[NUM][2];
                for (int64_t n = 0; n < NUM; n++)
                    std::memcpy(sums[n], result + n * DIM + start, sizeof sums[n]);
                for (int64_t t = 0; t < BLOCK; t++) {
                    Lanes values[2];
                    std::memcpy(values, tile + t * DIM + start, sizeof values);
                    for (int64_t n = 0; n < NUM; n++)
                        for (int64_t c = 0; c < 2; c++)
                            sums[n][c] += weights[n * length + t] * values[c];
                }
                for (int64_t n = 0; n < NUM; n++)
                    std::memcpy(result + n * DIM + start, sums[n], sizeof sums[n]);
            }
        } else {
            for (int64_t n = 0; n < NUM; n++)
                for (int64_t t = 0; t < size; t++)
                    for (int64_t c = 0; c < dim; c++)
                        result[n * dim + c] += weights[n * length + t] * tile[t * dim + c];
        }
    }

    static void softmax(float *scores, int64_t length) {
        float most = NOTHING, sum = 0;
        for (int64_t t = 0; t < length; t++) most = scores[t] > most ? scores[t] : most;
        // below -87 the vector function calls the scalar one, for a result that is almost nothing
        for (int64_t t = 0; t < length; t++) {
            float under = scores[t] - most;
            scores[t] = std::exp(under > -87.0f ? under : -87.0f);
        }
        for (int64_t t = 0; t < length; t++) sum += scores[t];
        float share = 1.0f / sum;
        for (int64_t t = 0; t < length; t++) scores[t] *= share;
    }

    void run() const {
        int64_t seen = 0;
        for (int64_t at = 0; at < num; at++) seen += end[at] - first[at];
        bool known = dim == value_dim && block_size == 16;
#pragma omp parallel for collapse(2) schedule(dynamic) if (seen * heads * dim > WORTH_A_THREAD)
        for (int64_t at = 0; at < num; at++)
            for (int64_t head = 0; head < kv_heads; head++) {
                if (known && dim == 64) group<64, 16>(at, head);
                else if (known && dim == 128) group<128, 16>(at, head);
                else group<0, 0>(at, head);
            }
    }
};

}  // namespace

#define FOR_EACH_TYPE(EXPORT) EXPORT(float, f32) EXPORT(bfloat16, bf16)

#define EXPORT(T, NAME)                                                                            \
    extern "C" void rms_norm_##NAME(const T *rows, const T *weight, T *out, int64_t num,           \
                                    int64_t heads, int64_t width, int64_t stride, float eps) {     \
        rms_norm(rows, weight, out, num, heads, width, stride, eps);                               \
    }                                                                                              \
    extern "C" void rotate_##NAME(T *rows, const T *cos, const T *sin, int64_t num, int64_t heads, \
                                  int64_t dim, int64_t stride) {                                   \
        rotate(rows, cos, sin, num, heads, dim, stride);                                           \
    }                                                                                              \
    extern "C" void put_keys_##NAME(const T *rows, T *pool, const int64_t *slots, int64_t num,     \
                                   int64_t heads, int64_t dim, int64_t num_blocks,                 \
                                   int64_t block_size, int64_t row_stride, int64_t head_stride) {  \
        put_keys(rows, pool, slots, num, heads, dim, num_blocks, block_size, row_stride,           \
                 head_stride);                                                                     \
    }                                                                                              \
    extern "C" void put_values_##NAME(const T *rows, T *pool, const int64_t *slots, int64_t num,   \
                                   int64_t heads, int64_t dim, int64_t num_blocks,                 \
                                   int64_t block_size, int64_t row_stride, int64_t head_stride) {  \
        put_values(rows, pool, slots, num, heads, dim, num_blocks, block_size, row_stride,         \
                 head_stride);                                                                     \
    }                                                                                              \
    extern "C" void attend_##NAME(const Attention<T> *call) { call->run(); }

FOR_EACH_TYPE(EXPORT)
