// Attention of packed rows on a CPU, forward and backward: each document sees itself and its row's shared prefix, nothing else.
//
// A task is a document and a key/value head. Scores stand transposed, (keys, queries), so that softmax and masks run along the
// queries of a block in vector registers, and probabilities are operands of the next product as they are. The products are
// oneDNN's brgemm as torch exports it (AMX or AVX512); their shapes are fixed, so few kernels are generated. Nothing of size
// (queries x keys) leaves the cache: the backward computes the probabilities again from the log-sums of the forward.
// A task writes places of its own (the prefix's gradient: a slot of its own, fp32), so results do not depend on threads.
// Compiled and called by kernel.py. torch's functions are declared here, since its headers take 20 s to compile.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace c10 {
struct BFloat16;
enum class ScalarType : int8_t;
}  // namespace c10
namespace at::native::cpublas {
void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a, int64_t ld_b, int64_t ld_c, const bool add,
            const c10::BFloat16* A, const c10::BFloat16* B, float* C, bool in_pairs);
void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a, int64_t ld_b, int64_t ld_c, const bool add, const float* A,
            const float* B, float* C, bool in_pairs);
void brgemm_release(bool in_pairs);
bool could_pack(c10::ScalarType type);
}  // namespace at::native::cpublas

namespace {

using bf16 = uint16_t;
constexpr int64_t Q = 32, S = 64;  // queries and keys of a block

struct Problem {
  int64_t n, H, K, E;     // pieces, heads, key/value heads, head width
  const int64_t* pieces;  // (n, 4): first place and length of the prefix, first place and length of the document
  float scale;
};

typedef float Vector __attribute__((vector_size(64), aligned(4)));  // 16 numbers: gcc's and clang's own, whatever the loops around
typedef int32_t Whole __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef bf16 Halves __attribute__((vector_size(32), aligned(2)));
constexpr int64_t W = 16;

inline Vector load(const float* x) { return *reinterpret_cast<const Vector*>(x); }
inline Vector load(const bf16* x) {
  return reinterpret_cast<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(x), Bits) << 16);
}
inline void store(Vector x, float* to) { *reinterpret_cast<Vector*>(to) = x; }
inline void store(Vector x, bf16* to) {  // to the nearest, ties to even; NaN stays NaN
  const Bits bits = reinterpret_cast<Bits>(x), near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(x == x ? near : Bits{} + 0x7fc0, Halves);
}

// e^x for x <= 0 (a rounding above does no harm); below 2^-80 it is 0, lest products be subnormal, which are slow; NaN stays NaN
inline Vector exponential(Vector x) {
  const Vector exact = x * 1.44269504f, least = Vector{} - 80.f, t = exact < least ? least : exact;
  const Whole whole = __builtin_convertvector(t - 0.5f, Whole);
  const Vector f = t - __builtin_convertvector(whole, Vector);
  Vector found = Vector{} + 1.5252734e-5f;
  for (float c : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f})
    found = found * f + c;
  return exact < least ? Vector{} : found * reinterpret_cast<Vector>((whole + 127) << 23);
}

// C (M, N) = A (M, K) B (K, N), added to C where told
inline void product(int64_t M, int64_t N, int64_t K, int64_t ld_a, bool add, const float* A, const float* B, float* C) {
  at::native::cpublas::brgemm(M, N, K, ld_a, N, N, add, A, B, C, false);
}
inline void product(int64_t M, int64_t N, int64_t K, int64_t ld_a, bool add, const bf16* A, const bf16* B, float* C) {
  using T = const c10::BFloat16*;
  at::native::cpublas::brgemm(M, N, K, ld_a, N, N, add, reinterpret_cast<T>(A), reinterpret_cast<T>(B), C, true);
}

// Right operands: fp32 (K, N) as it is; bf16 in pairs of rows, (K / 2, N, 2).
// rows (n, E) -> right operand (E, n)
template <typename T>
void turn_right(const T* rows, int64_t n, int64_t E, T* out) {
  using Unit = std::conditional_t<std::is_same_v<T, float>, float, uint32_t>;
  const int64_t width = E * sizeof(T) / sizeof(Unit);
  auto from = reinterpret_cast<const Unit*>(rows);
  auto to = reinterpret_cast<Unit*>(out);
  for (int64_t e = 0; e < width; ++e)
    for (int64_t i = 0; i < n; ++i) to[e * n + i] = from[i * width + e];
}

// rows (n, N) -> right operand (n, N)
template <typename T>
void pair_up(const T* rows, int64_t n, int64_t N, T* out) {
  if constexpr (std::is_same_v<T, float>) {
    std::copy(rows, rows + n * N, out);
  } else {
    for (int64_t i = 0; i < n; i += 2) {
      const T *low = rows + i * N, *high = low + N;
      auto to = reinterpret_cast<uint32_t*>(out + i * N);
#pragma omp simd
      for (int64_t j = 0; j < N; ++j) to[j] = uint32_t(low[j]) | uint32_t(high[j]) << 16;
    }
  }
}

// n rows of E, `stride` apart
template <typename T>
void gather(const T* from, int64_t n, int64_t stride, int64_t E, T* to) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * E, from + i * stride, E * sizeof(T));
}

// The keys or values of a task: (padded, E), zero where there is none; `turned` the same in blocks of (E, S)
template <typename T>
struct Keys {
  std::vector<T> rows, turned;
  void load(const T* x, const int64_t* piece, int64_t stride, int64_t E, int64_t padded, bool turn) {
    rows.assign(padded * E, T(0));
    gather(x + piece[0] * stride, piece[1], stride, E, rows.data());
    gather(x + piece[2] * stride, piece[3], stride, E, rows.data() + piece[1] * E);
    if (!turn) return;
    turned.resize(padded * E);
    for (int64_t at = 0; at < padded; at += S)
      for (int64_t e = 0; e < E; ++e)
        for (int64_t j = 0; j < S; ++j) turned[at * E + e * S + j] = rows[(at + j) * E + e];
  }
};

template <typename T>
struct Scratch {  // of a thread
  Keys<T> k, v;
  std::vector<T> rows, right, pairs, d_rows, d_right, d_pairs, weights, d_weights, right_weights, turned;
  std::vector<float> scores, d_scores, found, d_k, d_v;
  explicit Scratch(int64_t E)
      : rows(Q * E), right(Q * E), pairs(Q * E), d_rows(Q * E), d_right(Q * E), d_pairs(Q * E), weights(S * Q),
        d_weights(S * Q), right_weights(S * Q), turned(E * Q), scores(S * Q), d_scores(S * Q), found(E * Q) {}
};

inline int64_t blocks(int64_t keys) { return (keys + S - 1) / S * S; }

// Scores (S, Q) of keys that a query may not see, `ahead` keys beyond what the block's first query sees (negative: before)
inline void hide(float* scores, int64_t ahead) {
  for (int64_t j = std::max<int64_t>(0, -ahead); j < S; ++j)
    std::fill(scores + j * Q, scores + j * Q + std::min(Q, ahead + j + 1), -INFINITY);
}

// The block of queries from `at` on, zero where there is none
template <typename T>
void load_block(const T* x, const Problem& p, const int64_t* piece, int64_t at, int64_t h, T* to) {
  const int64_t n = std::min(Q, piece[3] - at);
  gather(x + ((piece[2] + at) * p.H + h) * p.E, n, p.H * p.E, p.E, to);
  std::fill(to + n * p.E, to + Q * p.E, T(0));
}

// turned (E, Q) to the block's places
template <typename T>
void store_block(const T* turned, const Problem& p, const int64_t* piece, int64_t at, int64_t h, T* to) {
  for (int64_t i = 0; i < std::min(Q, piece[3] - at); ++i)
    for (int64_t e = 0; e < p.E; ++e) to[((piece[2] + at + i) * p.H + h) * p.E + e] = turned[e * Q + i];
}

template <typename T>
void forward(const Problem& p, int64_t task, const T* q, const T* k, const T* v, T* out, float* sums, Scratch<T>& own) {
  const int64_t* piece = p.pieces + task / p.K * 4;
  const int64_t head = task % p.K, H = p.H, E = p.E, G = H / p.K, P = piece[1], L = piece[3];
  own.k.load(k + head * E, piece, p.K * E, E, blocks(P + L), false);
  own.v.load(v + head * E, piece, p.K * E, E, blocks(P + L), true);
  own.scores.resize(blocks(P + L) * Q);
  for (int64_t h = head * G; h < head * G + G; ++h)
    for (int64_t at = 0; at < L; at += Q) {
      const int64_t n = std::min(Q, L - at), keys = blocks(P + at + n);
      load_block(q, p, piece, at, h, own.rows.data());
      turn_right(own.rows.data(), Q, E, own.right.data());
      float *scores = own.scores.data(), top[Q], sum[Q];
      std::fill(top, top + Q, -INFINITY);
      std::fill(sum, sum + Q, 0.f);
      for (int64_t s = 0; s < keys; s += S) {
        product(S, Q, E, E, false, own.k.rows.data() + s * E, own.right.data(), scores + s * Q);
        hide(scores + s * Q, s - (P + at + 1));
        for (int64_t j = s; j < s + S; ++j)
          for (int64_t i = 0; i < Q; i += W) {
            const Vector old = load(top + i), found = load(scores + j * Q + i);
            store(found > old ? found : old, top + i);
          }
      }
      for (int64_t i = 0; i < Q; ++i) top[i] *= p.scale;
      for (int64_t s = 0; s < keys; s += S) {
        for (int64_t j = 0; j < S; ++j)
          for (int64_t i = 0; i < Q; i += W) {
            const Vector weight = exponential(load(scores + (s + j) * Q + i) * p.scale - load(top + i));
            store(load(sum + i) + weight, sum + i);
            store(weight, own.weights.data() + j * Q + i);
          }
        pair_up(own.weights.data(), S, Q, own.right_weights.data());
        product(E, Q, S, S, s > 0, own.v.turned.data() + s * E, own.right_weights.data(), own.found.data());
      }
      for (int64_t e = 0; e < E; ++e)
        for (int64_t i = 0; i < Q; i += W) store(load(own.found.data() + e * Q + i) / load(sum + i), own.turned.data() + e * Q + i);
      store_block(own.turned.data(), p, piece, at, h, out);
      for (int64_t i = 0; i < n; ++i) sums[(piece[2] + at + i) * H + h] = top[i] + std::log(sum[i]);
    }
}

template <typename T>
void backward(const Problem& p, int64_t task, const T* q, const T* k, const T* v, const T* out, const float* sums,
              const T* d_out, T* d_q, T* d_k, T* d_v, float* prefix_k, float* prefix_v, Scratch<T>& own) {
  const int64_t* piece = p.pieces + task / p.K * 4;
  const int64_t head = task % p.K, H = p.H, E = p.E, G = H / p.K, P = piece[1], L = piece[3];
  own.k.load(k + head * E, piece, p.K * E, E, blocks(P + L), true);
  own.v.load(v + head * E, piece, p.K * E, E, blocks(P + L), false);
  own.d_k.assign(blocks(P + L) * E, 0.f);
  own.d_v.assign(blocks(P + L) * E, 0.f);
  for (int64_t h = head * G; h < head * G + G; ++h)
    for (int64_t at = 0; at < L; at += Q) {
      const int64_t n = std::min(Q, L - at), keys = blocks(P + at + n);
      load_block(q, p, piece, at, h, own.rows.data());
      load_block(d_out, p, piece, at, h, own.d_rows.data());
      turn_right(own.rows.data(), Q, E, own.right.data());
      turn_right(own.d_rows.data(), Q, E, own.d_right.data());
      pair_up(own.rows.data(), Q, E, own.pairs.data());
      pair_up(own.d_rows.data(), Q, E, own.d_pairs.data());
      float log_sum[Q] = {}, mean[Q] = {};  // a query's log-sum, and its gradient's product with what it found
      for (int64_t i = 0; i < n; ++i) {
        const int64_t place = (piece[2] + at + i) * H + h;
        const T* found = out + place * E;
        Vector total{};
        for (int64_t e = 0; e < E; e += W) total += load(own.d_rows.data() + i * E + e) * load(found + e);
        for (int64_t e = 0; e < W; ++e) mean[i] += total[e];
        log_sum[i] = sums[place];
      }
      for (int64_t s = 0; s < keys; s += S) {
        product(S, Q, E, E, false, own.k.rows.data() + s * E, own.right.data(), own.scores.data());
        product(S, Q, E, E, false, own.v.rows.data() + s * E, own.d_right.data(), own.d_scores.data());
        hide(own.scores.data(), s - (P + at + 1));
        for (int64_t i = 0; i < S * Q; i += W) {
          const Vector weight = exponential(load(own.scores.data() + i) * p.scale - load(log_sum + i % Q));
          store(weight, own.weights.data() + i);
          store(weight * (load(own.d_scores.data() + i) - load(mean + i % Q)) * p.scale, own.d_weights.data() + i);
        }
        product(S, E, Q, Q, true, own.weights.data(), own.d_pairs.data(), own.d_v.data() + s * E);
        product(S, E, Q, Q, true, own.d_weights.data(), own.pairs.data(), own.d_k.data() + s * E);
        pair_up(own.d_weights.data(), S, Q, own.right_weights.data());
        product(E, Q, S, S, s > 0, own.k.turned.data() + s * E, own.right_weights.data(), own.found.data());
      }
      for (int64_t i = 0; i < E * Q; i += W) store(load(own.found.data() + i), own.turned.data() + i);
      store_block(own.turned.data(), p, piece, at, h, d_q);
    }
  std::copy(own.d_k.begin(), own.d_k.begin() + P * E, prefix_k + task * P * E);
  std::copy(own.d_v.begin(), own.d_v.begin() + P * E, prefix_v + task * P * E);
  for (int64_t i = 0; i < L; ++i)
    for (int64_t e = 0; e < E; e += W) {
      const int64_t place = ((piece[2] + i) * p.K + head) * E + e;
      store(load(own.d_k.data() + (P + i) * E + e), d_k + place);
      store(load(own.d_v.data() + (P + i) * E + e), d_v + place);
    }
}

template <typename T, typename Task>
void each_task(const Problem& p, int64_t threads, const Task& task) {
#pragma omp parallel num_threads(threads)
  {
    Scratch<T> own(p.E);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < p.n * p.K; ++i) task(i, own);
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  }
}

template <typename T>
void run(const Problem& p, int64_t threads, void** x) {
  auto q = static_cast<const T*>(x[0]), k = static_cast<const T*>(x[1]), v = static_cast<const T*>(x[2]);
  auto out = static_cast<T*>(x[3]);
  auto sums = static_cast<float*>(x[4]);
  if (!x[5]) {
    each_task<T>(p, threads, [&](int64_t i, Scratch<T>& own) { forward(p, i, q, k, v, out, sums, own); });
    return;
  }
  auto d_out = static_cast<const T*>(x[5]);
  auto d_q = static_cast<T*>(x[6]), d_k = static_cast<T*>(x[7]), d_v = static_cast<T*>(x[8]);
  auto prefix_k = static_cast<float*>(x[9]), prefix_v = static_cast<float*>(x[10]);
  each_task<T>(p, threads, [&](int64_t i, Scratch<T>& own) {
    backward(p, i, q, k, v, out, sums, d_out, d_q, d_k, d_v, prefix_k, prefix_v, own);
  });
}

}  // namespace

// Whether torch multiplies so on this processor; `type` is c10::ScalarType's number
extern "C" bool twllm_can_attend(int8_t type) { return at::native::cpublas::could_pack(c10::ScalarType(type)); }

// x: query, key, value, out, log-sums; for the backward also the gradients of out, query, key, value and the prefix's slots
extern "C" void twllm_attend(bool half, int64_t n, int64_t H, int64_t K, int64_t E, const int64_t* pieces, float scale,
                             int64_t threads, void** x) {
  const Problem p{n, H, K, E, pieces, scale};
  half ? run<bf16>(p, threads, x) : run<float>(p, threads, x);
}
