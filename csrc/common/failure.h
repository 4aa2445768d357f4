// Why a sample of a per-sample solve cannot go on.
#pragma once

namespace fastnode {

// The order of fastnode.engines.failures.Failure; zero is none.
enum class Failure : int { kNone, kNotFinite, kUnderflow, kTooManySteps };
constexpr int kFailures = 4;

}  // namespace fastnode
