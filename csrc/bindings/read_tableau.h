// Rows of coefficients as Python hands them over.
#pragma once

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/tableau.h"

namespace fastnode {

using Row = std::pair<std::vector<int>, std::vector<double>>;
using StiffnessRows = std::optional<std::tuple<Row, Row, double>>;

inline Weights read_weights(const Row& row) { return {row.first, row.second}; }

inline std::optional<StiffnessPair> read_pair(const StiffnessRows& rows) {
  if (!rows) return std::nullopt;
  const auto& [derivatives, states, stability] = *rows;
  return StiffnessPair{read_weights(derivatives), read_weights(states), stability};
}

}  // namespace fastnode
