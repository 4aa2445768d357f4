// Convolutions of generated fields over one image for each sample. Included inside a namespace
// (runtime.h). Images [channels, height, width] are contiguous, weights [out, in, kernel] too.
#pragma once

// As fastnode.fields.ir.Convolution: a convolution of x [Groups * In, H, W] to
// [Groups * Out, HO, WO].
template <int Groups_, int In_, int Out_, int H_, int W_, int HO_, int WO_, int KH_, int KW_,
          int SH_, int SW_, int PH_, int PW_, int DH_, int DW_>
struct Shape {
  static constexpr int Groups = Groups_, In = In_, Out = Out_, H = H_, W = W_, HO = HO_, WO = WO_,
                       KH = KH_, KW = KW_, SH = SH_, SW = SW_, PH = PH_, PW = PW_, DH = DH_,
                       DW = DW_;
};

template <class P>
INLINE P of_number(Number x) {
  if constexpr (kNumber<P>)
    return x;
  else
    return lift(x, P{});
}

// Positions of the result that read position `i` shifted by tap k lie in [first, last).
constexpr int first_place(int k, int stride, int padding, int dilation) {
  const int behind = padding - k * dilation;
  return behind > 0 ? (behind + stride - 1) / stride : 0;
}
constexpr int last_place(int k, int size, int out, int stride, int padding, int dilation) {
  const int most = size - 1 + padding - k * dilation;
  return most < 0 ? 0 : most / stride + 1 < out ? most / stride + 1 : out;
}

// One sample: outputs lie in vectors, image points are spread over them. `Weights`: [Groups][In]
// [KH][KW][Out], so that the outputs of a tap lie side by side. Reads x[channel][row][column] of a
// grid of `Rows` by `Columns` points in which taps never leave it, and writes to(channel, point,
// sum).
template <int Groups, int In, int Out, int Rows, int Columns, int KH, int KW, int SH, int SW,
          int DH, int DW, int HO, int WO, class F>
INLINE void convolve_points(const Number* x, const Number* w, F to) {
  constexpr int L = kLanes<Number>, kPoints = 8;
  for (int group = 0; group < Groups; ++group) {
    for (int o = 0; o < Out; o += L) {
      const int count = Out - o < L ? Out - o : L;
      for (int y = 0; y < HO; ++y) {
        const auto block = [&]<int Points>(Size<Points>, int c) INLINE_LAMBDA {
          V<Number> sum[Points] = {};
          for (int i = 0; i < In; ++i) {
            for (int ky = 0; ky < KH; ++ky) {
              const Number* const row =
                  x + ((group * In + i) * Rows + y * SH + ky * DH) * Columns + c * SW;
              const Number* taps = w + (((group * In + i) * KH + ky) * KW) * Out + o;
              for (int kx = 0; kx < KW; ++kx, taps += Out) {
                V<Number> weights = {};
                if (count == L)
                  weights = load(taps);
                else
                  for (int j = 0; j < count; ++j) weights[j] = taps[j];
#pragma GCC unroll 8
                for (int p = 0; p < Points; ++p) sum[p] = sum[p] + weights * row[p * SW + kx * DW];
              }
            }
          }
          for (int p = 0; p < Points; ++p) {
            for (int j = 0; j < count; ++j) to(group * Out + o + j, y * WO + c + p, sum[p][j]);
          }
        };
        int c = 0;
        for (; c + kPoints <= WO; c += kPoints) block(Size<kPoints>{}, c);
        for (; c + 4 <= WO; c += 4) block(Size<4>{}, c);
        for (; c < WO; ++c) block(Size<1>{}, c);
      }
    }
  }
}

// Zeros to be filled: on the stack, or on the heap where they are many, as stacks of threads hold
// few images of a megabyte.
template <int Count, bool Few = (Count * sizeof(Number) <= size_t(1) << 16)>
struct Zeros {
  alignas(64) Number at[Count] = {};
};
template <int Count>
struct Zeros<Count, false> {
  Number* const at = new Number[Count]();
  Zeros() = default;
  Zeros(const Zeros&) = delete;
  ~Zeros() { delete[] at; }
};

// The grid of points that the taps of one sample's convolution reach: the image, and zeros around
// it.
template <class S>
struct Padded {
  static constexpr int kRows = (S::HO - 1) * S::SH + (S::KH - 1) * S::DH + 1;
  static constexpr int kColumns = (S::WO - 1) * S::SW + (S::KW - 1) * S::DW + 1;
  static constexpr int kChannels = S::Groups * S::In;
  Zeros<kChannels * kRows * kColumns> zeros;
  Number* const at = zeros.at;

  explicit Padded(const Number* x) {
    for (int i = 0; i < kChannels; ++i) {
      for (int y = 0; y < kRows; ++y) {
        const int row = y - S::PH;
        if (row < 0 || row >= S::H) continue;
        for (int c = 0; c < kColumns; ++c) {
          const int column = c - S::PW;
          if (column < 0 || column >= S::W) continue;
          at[(i * kRows + y) * kColumns + c] = x[(i * S::H + row) * S::W + column];
        }
      }
    }
  }
};

// The convolution of one sample, by packed weights.
template <class S>
__attribute__((noinline)) void convolve_packed(S, const Number* x, const Number* w,
                                               const Number* bias, Number* out) {
  constexpr int kRows = Padded<S>::kRows, kColumns = Padded<S>::kColumns;
  const Padded<S> padded(x);
  convolve_points<S::Groups, S::In, S::Out, kRows, kColumns, S::KH, S::KW, S::SH, S::SW, S::DH,
                  S::DW, S::HO, S::WO>(padded.at, w, [&](int o, int p, Number sum) INLINE_LAMBDA {
    out[o * S::HO * S::WO + p] = bias ? sum + bias[o] : sum;
  });
}

// The transpose of one sample: a convolution of the results, spread apart by the stride, with taps
// in reverse order. `w`: [Groups][Out][KH][KW][In].
template <class S>
__attribute__((noinline)) void convolve_input_packed(S, const Number* g, const Number* w,
                                                     const Number* bias, Number* out) {
  constexpr int kUp = (S::KH - 1) * S::DH - S::PH, kLeft = (S::KW - 1) * S::DW - S::PW;
  constexpr int kRows = S::H + (S::KH - 1) * S::DH, kColumns = S::W + (S::KW - 1) * S::DW;
  constexpr int kChannels = S::Groups * S::Out;
  Zeros<kChannels * kRows * kColumns> zeros;
  Number* const padded = zeros.at;
  for (int o = 0; o < kChannels; ++o) {
    for (int y = 0; y < S::HO; ++y) {
      const int row = y * S::SH + kUp;
      if (row < 0 || row >= kRows) continue;
      for (int c = 0; c < S::WO; ++c) {
        const int column = c * S::SW + kLeft;
        if (column < 0 || column >= kColumns) continue;
        padded[(o * kRows + row) * kColumns + column] = g[(o * S::HO + y) * S::WO + c];
      }
    }
  }
  convolve_points<S::Groups, S::Out, S::In, kRows, kColumns, S::KH, S::KW, 1, 1, S::DH, S::DW, S::H,
                  S::W>(padded, w, [&](int i, int p, Number sum) INLINE_LAMBDA {
    out[i * S::H * S::W + p] = bias ? sum + bias[i] : sum;
  });
}

template <class S, class P>
__attribute__((noinline)) void convolve(S, const P* x, const Number* w, const Number* bias,
                                        P* out) {
  constexpr int kBlock = S::Out % 8 == 0 ? 8 : S::Out % 4 == 0 ? 4 : 1;
  if constexpr (kNumber<P>) {
    // Along the rows of the image.
    for (int o = 0; o < S::Groups * S::Out; ++o) {
      Number* const to = out + o * S::HO * S::WO;
      for (int i = 0; i < S::HO * S::WO; ++i) to[i] = bias ? bias[o] : 0;
      const int group = o / S::Out;
      for (int i = 0; i < S::In; ++i) {
        const Number* const from = x + (group * S::In + i) * S::H * S::W;
        for (int ky = 0; ky < S::KH; ++ky) {
          const int y0 = first_place(ky, S::SH, S::PH, S::DH);
          const int y1 = last_place(ky, S::H, S::HO, S::SH, S::PH, S::DH);
          for (int kx = 0; kx < S::KW; ++kx) {
            const Number weight = w[((o * S::In + i) * S::KH + ky) * S::KW + kx];
            const int x0 = first_place(kx, S::SW, S::PW, S::DW);
            const int x1 = last_place(kx, S::W, S::WO, S::SW, S::PW, S::DW);
            for (int y = y0; y < y1; ++y) {
              const Number* const row =
                  from + (y * S::SH + ky * S::DH - S::PH) * S::W + kx * S::DW - S::PW;
              for (int c = x0; c < x1; ++c) to[y * S::WO + c] += weight * row[c * S::SW];
            }
          }
        }
      }
    }
    return;
  }
  for (int group = 0; group < S::Groups; ++group) {
    for (int o = group * S::Out; o < (group + 1) * S::Out; o += kBlock) {
      for (int y = 0; y < S::HO; ++y) {
        for (int c = 0; c < S::WO; ++c) {
          P sum[kBlock];
          for (int j = 0; j < kBlock; ++j) sum[j] = of_number<P>(bias ? bias[o + j] : Number(0));
          for (int ky = 0; ky < S::KH; ++ky) {
            const int row = y * S::SH + ky * S::DH - S::PH;
            if (row < 0 || row >= S::H) continue;
            for (int kx = 0; kx < S::KW; ++kx) {
              const int column = c * S::SW + kx * S::DW - S::PW;
              if (column < 0 || column >= S::W) continue;
              const P* const from = x + (group * S::In * S::H + row) * S::W + column;
              const Number* const weights = w + (o * S::In * S::KH + ky) * S::KW + kx;
              for (int i = 0; i < S::In; ++i) {
                const P value = from[i * S::H * S::W];
#pragma GCC unroll 8
                for (int j = 0; j < kBlock; ++j) {
                  sum[j] = sum[j] + value * weights[(j * S::In + i) * S::KH * S::KW];
                }
              }
            }
          }
          for (int j = 0; j < kBlock; ++j) out[((o + j) * S::HO + y) * S::WO + c] = sum[j];
        }
      }
    }
  }
}

// The transpose: g [Groups * Out, HO, WO] to [Groups * In, H, W]. `bias` for each channel of the
// result.
template <class S, class P>
__attribute__((noinline)) void convolve_input(S, const P* g, const Number* w, const Number* bias,
                                              P* out) {
  constexpr int kBlock = S::In % 8 == 0 ? 8 : S::In % 4 == 0 ? 4 : 1;
  if constexpr (kNumber<P>) {
    for (int i = 0; i < S::Groups * S::In; ++i) {
      Number* const to = out + i * S::H * S::W;
      for (int j = 0; j < S::H * S::W; ++j) to[j] = bias ? bias[i] : 0;
      const int group = i / S::In;
      for (int o = group * S::Out; o < (group + 1) * S::Out; ++o) {
        const Number* const from = g + o * S::HO * S::WO;
        for (int ky = 0; ky < S::KH; ++ky) {
          const int y0 = first_place(ky, S::SH, S::PH, S::DH);
          const int y1 = last_place(ky, S::H, S::HO, S::SH, S::PH, S::DH);
          for (int kx = 0; kx < S::KW; ++kx) {
            const Number weight = w[((o * S::In + i % S::In) * S::KH + ky) * S::KW + kx];
            const int x0 = first_place(kx, S::SW, S::PW, S::DW);
            const int x1 = last_place(kx, S::W, S::WO, S::SW, S::PW, S::DW);
            for (int y = y0; y < y1; ++y) {
              Number* const row = to + (y * S::SH + ky * S::DH - S::PH) * S::W + kx * S::DW - S::PW;
              for (int c = x0; c < x1; ++c) row[c * S::SW] += weight * from[y * S::WO + c];
            }
          }
        }
      }
    }
    return;
  }
  for (int group = 0; group < S::Groups; ++group) {
    for (int i = 0; i < S::In; i += kBlock) {
      for (int y = 0; y < S::H; ++y) {
        for (int c = 0; c < S::W; ++c) {
          P sum[kBlock];
          const int channel = group * S::In + i;
          for (int j = 0; j < kBlock; ++j)
            sum[j] = of_number<P>(bias ? bias[channel + j] : Number(0));
          for (int ky = 0; ky < S::KH; ++ky) {
            const int up = y + S::PH - ky * S::DH;
            if (up < 0 || up % S::SH != 0 || up / S::SH >= S::HO) continue;
            for (int kx = 0; kx < S::KW; ++kx) {
              const int left = c + S::PW - kx * S::DW;
              if (left < 0 || left % S::SW != 0 || left / S::SW >= S::WO) continue;
              const P* const from =
                  g + (group * S::Out * S::HO + up / S::SH) * S::WO + left / S::SW;
              const Number* const weights =
                  w + ((group * S::Out * S::In + i) * S::KH + ky) * S::KW + kx;
              for (int o = 0; o < S::Out; ++o) {
                const P value = from[o * S::HO * S::WO];
#pragma GCC unroll 8
                for (int j = 0; j < kBlock; ++j) {
                  sum[j] = sum[j] + value * weights[(o * S::In + j) * S::KH * S::KW];
                }
              }
            }
          }
          for (int j = 0; j < kBlock; ++j) out[((channel + j) * S::H + y) * S::W + c] = sum[j];
        }
      }
    }
  }
}

// Of one sample: outputs lie in vectors, as in convolve_points, and its points are added up.
template <class S>
void convolve_weight_of_one(S, const Number* x, const Number* g, Number* to) {
  constexpr int L = kLanes<Number>, kPoints = S::HO * S::WO;
  constexpr int kRows = Padded<S>::kRows, kColumns = Padded<S>::kColumns;
  // Sums that the registers hold.
  constexpr auto fits = [](int n) { return S::In % n == 0 && n * S::KW <= 12; };
  constexpr int kIn = fits(8) ? 8 : fits(4) ? 4 : fits(2) ? 2 : 1;
  const Padded<S> padded(x);
  Zeros<kPoints * L> zeros;
  Number* const results = zeros.at;
  for (int group = 0; group < S::Groups; ++group) {
    for (int o = 0; o < S::Out; o += L) {
      const int count = S::Out - o < L ? S::Out - o : L, first = group * S::Out + o;
      for (int p = 0; p < kPoints; ++p) {
        for (int j = 0; j < L; ++j) {
          results[p * L + j] = j < count ? g[(first + j) * kPoints + p] : Number(0);
        }
      }
      for (int i = 0; i < S::In; i += kIn) {
        for (int ky = 0; ky < S::KH; ++ky) {
          V<Number> sum[kIn][S::KW] = {};
          for (int y = 0; y < S::HO; ++y) {
            const Number* const row =
                padded.at + ((group * S::In + i) * kRows + y * S::SH + ky * S::DH) * kColumns;
            for (int c = 0; c < S::WO; ++c) {
              const V<Number> result = load(results + (y * S::WO + c) * L);
#pragma GCC unroll 8
              for (int b = 0; b < kIn; ++b) {
#pragma GCC unroll 12
                for (int kx = 0; kx < S::KW; ++kx) {
                  sum[b][kx] =
                      sum[b][kx] + result * row[b * kRows * kColumns + c * S::SW + kx * S::DW];
                }
              }
            }
          }
          for (int j = 0; j < count; ++j) {
            for (int b = 0; b < kIn; ++b) {
              Number* const taps = to + (((first + j) * S::In + i + b) * S::KH + ky) * S::KW;
              for (int kx = 0; kx < S::KW; ++kx) taps[kx] += sum[b][kx][j];
            }
          }
        }
      }
    }
  }
}

// to [Groups * Out, In, KH, KW] += the gradient of the weights, added up over the lanes.
template <class S, class P>
__attribute__((noinline)) void convolve_weight(S, const P* x, const P* g, Number* to) {
  if constexpr (kNumber<P>) return convolve_weight_of_one(S{}, x, g, to);
  constexpr int kOut = S::Out % 4 == 0 ? 4 : 1;
  constexpr int kIn = (S::In % 4 == 0 && sizeof(P) <= kBytes) ? 4 : S::In % 2 == 0 ? 2 : 1;
  for (int group = 0; group < S::Groups; ++group) {
    for (int o = group * S::Out; o < (group + 1) * S::Out; o += kOut) {
      for (int i = 0; i < S::In; i += kIn) {
        for (int ky = 0; ky < S::KH; ++ky) {
          const int y0 = first_place(ky, S::SH, S::PH, S::DH);
          const int y1 = last_place(ky, S::H, S::HO, S::SH, S::PH, S::DH);
          for (int kx = 0; kx < S::KW; ++kx) {
            const int x0 = first_place(kx, S::SW, S::PW, S::DW);
            const int x1 = last_place(kx, S::W, S::WO, S::SW, S::PW, S::DW);
            P sum[kOut][kIn];
            for (auto& row : sum) {
              for (P& each : row) each = of_number<P>(0);
            }
            for (int y = y0; y < y1; ++y) {
              const P* const image =
                  x + ((group * S::In + i) * S::H + y * S::SH + ky * S::DH - S::PH) * S::W +
                  kx * S::DW - S::PW;
              const P* const result = g + (o * S::HO + y) * S::WO;
              for (int c = x0; c < x1; ++c) {
                P inputs[kIn];
                for (int b = 0; b < kIn; ++b) inputs[b] = image[b * S::H * S::W + c * S::SW];
                for (int a = 0; a < kOut; ++a) {
                  const P value = result[a * S::HO * S::WO + c];
                  for (int b = 0; b < kIn; ++b) sum[a][b] = sum[a][b] + value * inputs[b];
                }
              }
            }
            for (int a = 0; a < kOut; ++a) {
              for (int b = 0; b < kIn; ++b) {
                to[(((o + a) * S::In + i + b) * S::KH + ky) * S::KW + kx] += sum_lanes(sum[a][b]);
              }
            }
          }
        }
      }
    }
  }
}
