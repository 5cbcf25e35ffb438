// What torch has no fused operation for on a CPU, in float32 and bfloat16; see kernels.py. What is
// done to one row is in kernels.h.
//
// Plain loops that a compiler turns into vector code. All arithmetic is in float32.

#include "kernels.h"

#include <type_traits>
#include <vector>

namespace {

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // multiplications below which waking one costs more

// Normalises each of `heads` runs of `width` values in each row; `rows` and `out` may be one.
template <typename T>
void rms_norm(const T *rows, const T *weight, T *out, int64_t num, int64_t heads, int64_t width,
              int64_t stride, float eps) {
#pragma omp parallel for if (num * heads * width > WORTH_A_THREAD)
    for (int64_t at = 0; at < num * heads; at++) {
        int64_t offset = at / heads * stride + at % heads * width;
        normalise(rows + offset, weight, out + offset, width, eps);
    }
}

// Rotates `heads` heads of each row in place.
template <typename T>
void rotate(T *rows, const T *cos, const T *sin, int64_t num, int64_t heads, int64_t dim,
            int64_t stride) {
#pragma omp parallel for if (num * heads * dim > WORTH_A_THREAD)
    for (int64_t row = 0; row < num; row++)
        for (int64_t head = 0; head < heads; head++)
            turn(rows + row * stride + head * dim, cos + row * dim, sin + row * dim, dim);
}

// Keys or values of rows [num, heads, dim] and their slots in a pool.
template <typename T>
struct Put {
    const T *rows;
    const int64_t *slots;
    int64_t num, heads, dim, row_stride, head_stride;

    template <typename Place>
    void each(Place place) const {
        for (int64_t row = 0; row < num; row++)
            for (int64_t head = 0; head < heads; head++)
                place(rows + row * row_stride + head * head_stride, head, slots[row], dim);
    }
};

// One by one: whole arrays of them, copied at once, would stay in memory instead of registers.
inline Lanes lanes(const float *from) {
    Lanes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

// Blocks lie anywhere in the pool, so the processor does not foresee them.
template <typename T>
inline void fetch(const T *block, int64_t num) {
    for (int64_t i = 0; i < num; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(block + i);
}

constexpr float UNSEEN = -1e30f;  // a score whose share is 0; -ffast-math knows no infinity

constexpr int64_t AT_ONCE = 4;  // blocks whose values are made float32 together

template <typename T>
struct Attending : Attention<T> {
    using Call = Attention<T>;
    using Call::query, Call::out, Call::keys, Call::values, Call::first, Call::count, Call::end;
    using Call::table, Call::num, Call::heads, Call::kv_heads, Call::dim, Call::value_dim;
    using Call::num_blocks, Call::block_size, Call::table_width, Call::window, Call::query_row;
    using Call::query_head, Call::out_row, Call::out_head, Call::scale, Call::softcap;

    int64_t begin(int64_t end) const { return window && end > window ? end - window : 0; }

    // One task and one key head: scores of its rows' groups block by block, softmax, values.
    // DIM and BLOCK are the sizes where they are known to the compiler, else 0.
    template <int64_t DIM, int64_t BLOCK>
    void group(int64_t task, int64_t kv_head) const {
        const int64_t dim = DIM ? DIM : this->dim, value_dim = DIM ? DIM : this->value_dim;
        const int64_t size = BLOCK ? BLOCK : block_size;
        const int64_t group = heads / kv_heads, queries = group * count[task];
        const int64_t from = begin(end[task]) / size;
        const int64_t blocks = (end[task] + count[task] - 2) / size + 1 - from;
        const int64_t length = blocks * size;
        const int64_t wide = dim > value_dim ? dim : value_dim;
        static thread_local std::vector<float> scratch;
        scratch.resize(queries * (length + wide) + AT_ONCE * wide * size);
        float *scores = scratch.data(), *mine = scores + queries * length;
        float *tile = mine + queries * wide;
        const int32_t *used = table + task * table_width + from;

        for (int64_t j = 0; j < queries; j++) {
            const T *q = query + (first[task] + j / group) * query_row +
                         (kv_head * group + j % group) * query_head;
            for (int64_t i = 0; i < dim; i++) mine[j * dim + i] = load(q[i]) * scale;
        }
        for (int64_t b = 0; b < blocks; b++) {
            const T *key = keys + (kv_head * num_blocks + used[b]) * dim * size;
            if (b + 1 < blocks)
                fetch(keys + (kv_head * num_blocks + used[b + 1]) * dim * size, dim * size);
            for (int64_t i = 0; i < dim * size; i++) tile[i] = load(key[i]);
            for (int64_t j = 0; j < queries; j += 8)
                several<8>(queries - j, [&](auto num) {
                    multiply<DIM, BLOCK, num()>(mine + j * dim, tile, scores + j * length + b * size,
                                                dim, size, length);
                });
        }
        for (int64_t j = 0; j < queries; j++) {
            float *row = scores + j * length;
            int64_t until = end[task] + j / group;
            if (softcap != 0)
                for (int64_t t = 0; t < length; t++)
                    row[t] = softcap * std::tanh(row[t] / softcap);
            for (int64_t t = 0; t < begin(until) - from * size; t++) row[t] = UNSEEN;
            for (int64_t t = until - from * size; t < length; t++) row[t] = UNSEEN;
            softmax(row, length);
        }
        for (int64_t i = 0; i < queries * value_dim; i++) mine[i] = 0;
        for (int64_t b = 0; b < blocks; b += AT_ONCE) {
            int64_t most = b + AT_ONCE < blocks ? AT_ONCE : blocks - b;
            for (int64_t n = 0; n < most; n++) {
                const T *value = values + (kv_head * num_blocks + used[b + n]) * size * value_dim;
                if (b + n + AT_ONCE < blocks)
                    fetch(values + (kv_head * num_blocks + used[b + n + AT_ONCE]) * size * value_dim,
                          size * value_dim);
                float *to = tile + n * size * value_dim;
                // behind the last position that a row sees lies what another sequence left there,
                // and 0 times that may be no number
                const int64_t seen = end[task] + count[task] - 1 - (from + b + n) * size;
                const int64_t used_values = (seen < size ? seen : size) * value_dim;
                for (int64_t i = 0; i < used_values; i++) to[i] = load(value[i]);
                for (int64_t i = used_values; i < size * value_dim; i++) to[i] = 0;
            }
            for (int64_t j = 0; j < queries; j += 4)
                several<4>(queries - j, [&](auto num) {
                    accumulate<DIM, num()>(scores + j * length + b * size, tile,
                                           mine + j * value_dim, most * size, value_dim, length);
                });
        }
        for (int64_t j = 0; j < queries; j++) {
            T *to = out + (first[task] + j / group) * out_row +
                    (kv_head * group + j % group) * out_head;
            for (int64_t i = 0; i < value_dim; i++) store(to[i], mine[j * value_dim + i]);
        }
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
                Lanes keys = lanes(tile + i * BLOCK);
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
    template <int64_t DIM, int64_t NUM>
    static void accumulate(const float *weights, const float *tile, float *result, int64_t num,
                           int64_t dim, int64_t length) {
        if constexpr (DIM != 0) {
            constexpr int64_t WIDE = DIM % (4 * LANES) ? 2 : 4;
            for (int64_t start = 0; start < DIM; start += WIDE * LANES) {
                Lanes sums[NUM][WIDE];
                for (int64_t n = 0; n < NUM; n++)
                    for (int64_t c = 0; c < WIDE; c++)
                        sums[n][c] = lanes(result + n * DIM + start + c * LANES);
                for (int64_t t = 0; t < num; t++) {
                    Lanes values[WIDE];
                    for (int64_t c = 0; c < WIDE; c++)
                        values[c] = lanes(tile + t * DIM + start + c * LANES);
                    for (int64_t n = 0; n < NUM; n++)
                        for (int64_t c = 0; c < WIDE; c++)
                            sums[n][c] += weights[n * length + t] * values[c];
                }
                for (int64_t n = 0; n < NUM; n++)
                    for (int64_t c = 0; c < WIDE; c++)
                        std::memcpy(result + n * DIM + start + c * LANES, &sums[n][c], sizeof(Lanes));
            }
        } else {
            for (int64_t n = 0; n < NUM; n++)
                for (int64_t t = 0; t < num; t++)
                    for (int64_t c = 0; c < dim; c++)
                        result[n * dim + c] += weights[n * length + t] * tile[t * dim + c];
        }
    }

    static void softmax(float *scores, int64_t length) {
        float most = UNSEEN, sum = 0;
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

    void run_team() const {
        bool known = dim == value_dim && block_size == LANES;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t task = 0; task < num; task++)
            for (int64_t head = 0; head < kv_heads; head++) {
                if (known && dim == 64) group<64, LANES>(task, head);
                else if (known && dim == 128) group<128, LANES>(task, head);
                else group<0, 0>(task, head);
            }
    }

    void run() const {
        int64_t seen = 0;
        for (int64_t task = 0; task < num; task++) seen += end[task] * count[task];
#pragma omp parallel if (seen * heads * dim > WORTH_A_THREAD)
        run_team();
    }
};

}  // namespace

template <typename T>
void attend_team(const Attention<T> &call) {
    Attending<T>{call}.run_team();
}

template void attend_team(const Attention<bfloat16> &);

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
        Pool<T> to{pool, nullptr, num_blocks, block_size};                                         \
        Put<T>{rows, slots, num, heads, dim, row_stride, head_stride}.each(                        \
            [&](auto... at) { to.put_key(at...); });                                               \
    }                                                                                              \
    extern "C" void put_values_##NAME(const T *rows, T *pool, const int64_t *slots, int64_t num,   \
                                   int64_t heads, int64_t dim, int64_t num_blocks,                 \
                                   int64_t block_size, int64_t row_stride, int64_t head_stride) {  \
        Pool<T> to{nullptr, pool, num_blocks, block_size};                                         \
        Put<T>{rows, slots, num, heads, dim, row_stride, head_stride}.each(                        \
            [&](auto... at) { to.put_value(at...); });                                             \
    }                                                                                              \
    extern "C" void attend_##NAME(const Attention<T> *call) { Attending<T>{*call}.run(); }

FOR_EACH_TYPE(EXPORT)
