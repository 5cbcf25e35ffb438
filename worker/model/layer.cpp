// A whole decoder layer of the Llama pattern in one call, in bfloat16; see layer_native.py.
//
// Its eight parts share one parallel region: between two of them threads wait for each other for a
// microsecond, where a call each would cost ten, and most of them on one thread.

#include "kernels.h"

#if HAS_PRODUCTS

namespace {

// What is the same for every step of a layer.
struct Layer {
    Product qkv, out, gated, down;  // without rows
    Pool<bfloat16> pool;
    const bfloat16 *norm, *mlp_norm;         // [hidden]
    const bfloat16 *query_norm, *key_norm;   // [dim], or null
    int64_t heads, kv_heads, dim;
    float eps, mlp_eps, query_eps, key_eps, scale;
};

// What is the same for every layer of a step. `rows` goes from layer to layer.
struct Step {
    bfloat16 *rows;                     // [num, hidden]
    bfloat16 *normed;                   // [num, hidden]
    bfloat16 *qkv;                      // [num, heads + 2 kv_heads, dim]
    bfloat16 *attended;                 // [num, heads, dim]
    bfloat16 *inner;                    // [num, intermediate]
    const bfloat16 *cos, *sin;          // [num, dim]
    const int64_t *slots;               // [num]
    const Attention<bfloat16> *tasks;   // only the tasks themselves
    int64_t num;
};

void norm_team(const bfloat16 *from, const bfloat16 *weight, bfloat16 *to, int64_t num,
               int64_t width, float eps) {
#pragma omp for
    for (int64_t row = 0; row < num; row++)
        normalise(from + row * width, weight, to + row * width, width, eps);
}

// Norms of the heads, rotation, and the way of keys and values into the pool.
void place_team(const Layer &l, const Step &s) {
    const int64_t turned = l.heads + l.kv_heads, dim = l.dim, width = (turned + l.kv_heads) * dim;
#pragma omp for
    for (int64_t row = 0; row < s.num; row++) {
        bfloat16 *first = s.qkv + row * width;
        for (int64_t head = 0; head < l.kv_heads; head++) l.pool.fetch(head, s.slots[row], dim);
        for (int64_t head = 0; head < turned; head++) {
            bfloat16 *at = first + head * dim;
            bool is_key = head >= l.heads;
            if (const bfloat16 *weight = is_key ? l.key_norm : l.query_norm)
                normalise(at, weight, at, dim, is_key ? l.key_eps : l.query_eps);
            turn(at, s.cos + row * dim, s.sin + row * dim, dim);
        }
        for (int64_t head = 0; head < l.kv_heads; head++) {
            l.pool.put_key(first + (l.heads + head) * dim, head, s.slots[row], dim);
            l.pool.put_value(first + (turned + head) * dim, head, s.slots[row], dim);
        }
    }
}

Product product(const Product &of, const bfloat16 *rows, bfloat16 *out, int64_t num) {
    Product call = of;
    call.rows = rows, call.other = out, call.out = out, call.num = num;
    call.row_stride = of.inputs, call.other_stride = of.outputs;
    return call;
}

Attention<bfloat16> attention(const Layer &l, const Step &s) {
    Attention<bfloat16> call = *s.tasks;
    call.query = s.qkv, call.out = s.attended;
    call.keys = l.pool.keys, call.values = l.pool.values;
    call.num_blocks = l.pool.num_blocks, call.block_size = l.pool.block_size;
    call.heads = l.heads, call.kv_heads = l.kv_heads, call.dim = call.value_dim = l.dim;
    call.query_row = (l.heads + 2 * l.kv_heads) * l.dim, call.out_row = l.heads * l.dim;
    call.query_head = call.out_head = l.dim;
    call.scale = l.scale, call.softcap = 0;
    return call;
}

}  // namespace

extern "C" int64_t layer_size() { return sizeof(Layer); }

extern "C" int64_t step_size() { return sizeof(Step); }

extern "C" void layer(const Layer *layer, const Step *step) {
    const Layer &l = *layer;
    const Step &s = *step;
    const int64_t hidden = l.qkv.inputs;
    const Product qkv = product(l.qkv, s.normed, s.qkv, s.num);
    const Product out = product(l.out, s.attended, s.rows, s.num);
    const Product gated = product(l.gated, s.normed, s.inner, s.num);
    const Product down = product(l.down, s.inner, s.rows, s.num);
    const Attention<bfloat16> attending = attention(l, s);
#pragma omp parallel
    {
        norm_team(s.rows, l.norm, s.normed, s.num, hidden, l.eps);
        product_team(qkv);
        place_team(l, s);
        attend_team(attending);
        product_team(out);
        norm_team(s.rows, l.mlp_norm, s.normed, s.num, hidden, l.mlp_eps);
        product_team(gated);
        product_team(down);
    }
}

#endif
