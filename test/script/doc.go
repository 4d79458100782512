// Package script runs a whole mesh in one process: the control plane over a
// folder, real proxies that join with tokens and get their orders over xDS, and
// services behind them. It holds tests only.
package script
