// Chooses a token for each row of logits: what pick_torch.py does by torch's operations, which pass over
// a vocabulary a dozen times, and rank much of it where top_k or top_p cut it.
//
// Here a row that is cut is not ranked either. Its tokens fall into bins by how far they lie behind
// the most likely one, and only a bin in which a cut or the draw falls is sorted.

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));

constexpr int64_t PART = 256;  // tokens whose weights are summed before a draw looks among them
constexpr int64_t BINS = 1024;  // the last one has all that is less likely still
constexpr float BINS_A_NAT = 32, LAST_BIN = BINS - 1;
constexpr float WEIGHTLESS = -87;  // a logarithm of a weight that is 0 in float32

// Rows of logits, how their tokens are chosen, and what was chosen.
struct Pick {
    const void *logits;  // [num, vocab], `stride` apart
    const float *temperature;  // of each row; 0 takes the most likely token
    const int64_t *top_k;      // 0 for all
    const float *top_p, *min_p;
    const double *draws;  // in [0, 1)
    int64_t *tokens;
    int64_t *finite;  // whether all of a row's logits are numbers
    int64_t num, vocab, stride;
};

template <typename T>
inline Lanes take(const T *from) {
    float found[LANES];
    for (int64_t i = 0; i < LANES; i++) found[i] = load(from[i]);
    Lanes lanes;
    std::memcpy(&lanes, found, sizeof lanes);
    return lanes;
}

// All `num` values, with `fill` behind them where they end within lanes.
template <typename T, typename Each>
inline void each_lanes(const T *from, int64_t num, float fill, Each each) {
    int64_t i = 0;
    for (; i + LANES <= num; i += LANES) each(i, take(from + i));
    if (i == num) return;
    Lanes rest = Lanes{} + fill;
    for (int64_t lane = 0; i + lane < num; lane++) rest[lane] = load(from[i + lane]);
    each(i, rest);
}

inline float sum_of(Lanes values) {
    float sum = 0;
    for (int64_t i = 0; i < LANES; i++) sum += values[i];
    return sum;
}

// e^x for x <= 0, to 3e-7 of its value; 0 below WEIGHTLESS and for what is no number.
inline Lanes exponential(Lanes x) {
    Integers counts = x >= WEIGHTLESS;
    Lanes scaled = x * 1.44269504f, whole = (scaled + 12582912.0f) - 12582912.0f;
    Lanes part = scaled - whole, sum = part * 1.5403530e-4f + 1.3333558e-3f;
    for (float term : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        sum = sum * part + term;
    whole = counts ? whole : Lanes{};
    Integers bits = (__builtin_convertvector(whole, Integers) + 127) << 23;
    Lanes power;
    std::memcpy(&power, &bits, sizeof power);
    return counts ? sum * power : Lanes{};
}

// The index at which the running sum of `values` passes `target`, which becomes what is left of it
// there; the last one of any weight where rounding carries it past all.
template <typename T>
int64_t passed(const T *values, int64_t num, double &target) {
    int64_t last = 0;
    for (int64_t i = 0; i < num; i++) {
        if (!(values[i] > 0)) continue;
        last = i;
        if (values[i] > target) return last;
        target -= values[i];
    }
    target = INFINITY;
    return last;
}

// The weights e^((logit - greatest) / temperature) of a row's tokens; what ranks them.
struct Weights {
    std::vector<float> each, logits;
    std::vector<uint16_t> bins;

    template <typename T>
    void weigh(const T *logits, int64_t vocab, float greatest, float temperature) {
        each.resize(vocab);
        each_lanes(logits, vocab, -INFINITY, [&](int64_t i, Lanes logit) {
            Lanes weight = exponential((logit - greatest) / temperature);
            std::memcpy(&each[i], &weight, std::min(LANES, vocab - i) * sizeof(float));
        });
    }

    template <typename T>
    void bin(const T *from, int64_t vocab, float greatest, float temperature) {
        bins.resize(vocab);
        logits.resize(vocab);
        each_lanes(from, vocab, -INFINITY, [&](int64_t i, Lanes logit) {
            std::memcpy(&logits[i], &logit, std::min(LANES, vocab - i) * sizeof(float));
            Lanes behind = (greatest - logit) / temperature * BINS_A_NAT;
            behind = behind < LAST_BIN ? behind : Lanes{} + LAST_BIN;
            behind = behind > 0 ? behind : Lanes{};  // what is no number
            Integers whole = __builtin_convertvector(behind, Integers);
            for (int64_t lane = 0; lane < std::min(LANES, vocab - i); lane++)
                bins[i + lane] = uint16_t(whole[lane]);
        });
    }

    // The token at which the running sum of all weights that are not below `least` passes a share
    // of it.
    int64_t at(double share, float least) {
        const int64_t num = int64_t(each.size());
        static thread_local std::vector<double> parts;
        parts.assign((num + PART - 1) / PART, 0);
        double sum = 0;
        for (int64_t part = 0; part < int64_t(parts.size()); part++) {
            float *from = &each[part * PART];
            Lanes lanes{};
            each_lanes(from, std::min(PART, num - part * PART), 0, [&](int64_t i, Lanes weight) {
                weight = weight < least ? Lanes{} : weight;
                std::memcpy(from + i, &weight, std::min(LANES, num - part * PART - i) * sizeof(float));
                lanes += weight;
            });
            sum += parts[part] = sum_of(lanes);
        }
        double target = share * sum;
        int64_t begin = PART * passed(parts.data(), int64_t(parts.size()), target);
        return begin + passed(&each[begin], std::min(PART, num - begin), target);
    }
};

// The tokens of a row from the most likely one on, as far as it takes to cut them and to draw.
class Ranking {
  public:
    // A beginning: all tokens of the bins before `bin` and `within` of that one, and their weight.
    struct Beginning {
        int64_t bin = 0, within = 0;
        double weight = 0;
    };

    void take(const Weights &weights) {
        weights_ = &weights;
        sorted_bin_ = -1;
        counts_.assign(BINS, 0);
        sums_.assign(BINS, 0);
        for (int64_t i = 0; i < int64_t(weights.bins.size()); i++) {
            counts_[weights.bins[i]]++;
            sums_[weights.bins[i]] += weights.each[i];
        }
    }

    // So many tokens, as top_k has them.
    Beginning first(int64_t num) {
        Beginning found;
        for (; found.bin < BINS && counts_[found.bin] <= num; found.bin++) {
            num -= counts_[found.bin];
            found.weight += sums_[found.bin];
        }
        if (found.bin < BINS && num > 0) {
            sort(found.bin, num);  // nobody looks at those that are cut
            while (found.within < num) found.weight += weight_of(found.bin, found.within++);
        }
        return found;
    }

    // The fewest of `all` that weigh as much as `least` together, as top_p has them.
    Beginning weighing(const Beginning &all, double least) {
        Beginning found;
        while (found.bin < all.bin && found.weight + sums_[found.bin] < least)
            found.weight += sums_[found.bin++];
        while (found.within < num_of(all, found.bin) && found.weight < least)
            found.weight += weight_of(found.bin, found.within++);
        return found;
    }

    // Those of `all` that are not below `least` each, as min_p has them.
    Beginning above(const Beginning &all, float least) {
        Beginning found;
        // all of a bin are above what the next one begins with, but for rounding
        while (found.bin < std::min(all.bin, BINS - 1) &&
               std::exp(-(found.bin + 1) / BINS_A_NAT) > least * 1.001f)
            found.weight += sums_[found.bin++];
        for (;; found.bin++, found.within = 0) {
            for (; found.within < num_of(all, found.bin); found.within++) {
                float weight = weight_of(found.bin, found.within);
                if (weight < least) return found;
                found.weight += weight;
            }
            if (found.bin >= all.bin) return found;
        }
    }

    // The token of `all` at which the running sum of the weights passes a share of it.
    int64_t at(const Beginning &all, double share) {
        double target = share * all.weight;
        int64_t last = -1;
        for (int64_t bin = 0; bin <= std::min(all.bin, BINS - 1); bin++) {
            int64_t num = num_of(all, bin);
            if (num == 0 || sums_[bin] == 0) continue;
            last = bin;
            if (bin < all.bin && sums_[bin] <= target) {
                target -= sums_[bin];
                continue;
            }
            for (int64_t at = 0; at < num; target -= weight_of(bin, at++))
                if (weight_of(bin, at) > target) return sorted(bin)[at];
        }
        if (last < 0) return 0;  // nothing has any weight
        int64_t at = num_of(all, last) - 1;
        while (at > 0 && weight_of(last, at) == 0) at--;
        return sorted(last)[at];
    }

  private:
    const Weights *weights_ = nullptr;
    std::vector<int64_t> counts_;
    std::vector<double> sums_;
    std::vector<int32_t> sorted_;
    int64_t sorted_bin_ = -1;

    int64_t num_of(const Beginning &all, int64_t bin) const {
        return bin < all.bin ? counts_[bin] : bin == all.bin ? all.within : 0;
    }

    float weight_of(int64_t bin, int64_t at) { return weights_->each[sorted(bin)[at]]; }

    // A bin's tokens, the most likely first, equal ones in their order.
    const std::vector<int32_t> &sorted(int64_t bin) {
        if (bin != sorted_bin_) sort(bin, counts_[bin]);
        return sorted_;
    }

    // Sorts the `num` most likely of a bin's tokens and forgets the others.
    void sort(int64_t bin, int64_t num) {
        const std::vector<uint16_t> &bins = weights_->bins;
        const std::vector<float> &logits = weights_->logits;
        sorted_bin_ = bin;
        sorted_.clear();
        for (int64_t i = 0; i < int64_t(bins.size()); i++)
            if (bins[i] == bin) sorted_.push_back(int32_t(i));
        auto before = [&](int32_t a, int32_t b) {
            return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
        };
        if (num < int64_t(sorted_.size())) {
            std::nth_element(sorted_.begin(), sorted_.begin() + num, sorted_.end(), before);
            sorted_.resize(num);
        }
        std::sort(sorted_.begin(), sorted_.end(), before);
    }
};

template <typename T>
void pick_row(const Pick &p, int64_t row) {
    const T *logits = (const T *)p.logits + row * p.stride;
    const float first = load(logits[0]);
    Lanes greatest_of = Lanes{} - INFINITY, sum{};
    each_lanes(logits, p.vocab, first, [&](int64_t, Lanes logit) {
        greatest_of = logit > greatest_of ? logit : greatest_of;
        sum += logit;  // is finite only if all of them are
    });
    float greatest = greatest_of[0];
    for (int64_t lane = 1; lane < LANES; lane++) greatest = std::max(greatest, greatest_of[lane]);
    const float all = sum_of(sum);
    p.finite[row] = std::isfinite(all);
    const float temperature = p.temperature[row];
    if (temperature == 0 || std::isnan(all)) {  // what is no number has no order
        int64_t token = 0;
        while (token + 1 < p.vocab && load(logits[token]) != greatest) token++;
        p.tokens[row] = token;
        return;
    }
    static thread_local Weights weights;
    static thread_local Ranking ranking;
    weights.weigh(logits, p.vocab, greatest, temperature);
    if (p.top_k[row] == 0 && p.top_p[row] >= 1) {
        p.tokens[row] = weights.at(p.draws[row], p.min_p[row]);
        return;
    }
    weights.bin(logits, p.vocab, greatest, temperature);
    ranking.take(weights);
    Ranking::Beginning kept = ranking.first(p.top_k[row] ? p.top_k[row] : p.vocab);
    if (p.top_p[row] < 1) kept = ranking.weighing(kept, p.top_p[row] * kept.weight);
    if (p.min_p[row] > 0) kept = ranking.above(kept, p.min_p[row]);
    p.tokens[row] = ranking.at(kept, p.draws[row]);
}

template <typename T>
void pick(const Pick &p) {
#pragma omp parallel for schedule(dynamic) if (p.num > 1)
    for (int64_t row = 0; row < p.num; row++) pick_row<T>(p, row);
}

}  // namespace

extern "C" void pick_f32(const Pick *call) { pick<float>(*call); }

extern "C" void pick_bf16(const Pick *call) { pick<bfloat16>(*call); }
