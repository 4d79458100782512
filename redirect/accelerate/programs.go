package accelerate

import (
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Offsets into the contexts of the programs (linux/bpf.h).
const (
	opsOp          = 0 // struct bpf_sock_ops
	opsNewState    = 8 // args[1] of a change of state
	opsFamily      = 20
	opsRemote4     = 24 // network byte order
	opsLocal4      = 28
	opsRemote6     = 32
	opsLocal6      = 48
	opsRemotePort  = 64 // network byte order
	opsLocalPort   = 68 // host byte order
	opsCallbacks   = 84
	opsReceiveNext = 100
	opsSendNext    = 104
	opsSegmentsIn  = 144 // that carried data
	opsSegmentsOut = 152 // that carried data
	opsSocket      = 184
	msgSocket      = 72 // struct sk_msg_md
	sockoptSocket  = 0  // struct bpf_sockopt
	sockoptLevel   = 24
	sockoptName    = 28
	opActive       = 4   // BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
	opPassive      = 5   // BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
	opState        = 10  // BPF_SOCK_OPS_STATE_CB
	callbackState  = 4   // BPF_SOCK_OPS_STATE_CB_FLAG
	stateClose     = 7   // TCP_CLOSE
	ingress        = 1   // BPF_F_INGRESS
	storageCreate  = 1   // BPF_SK_STORAGE_GET_F_CREATE
	verdictPass    = 1   // SK_PASS
	sockoptAllow   = 1   // the kernel goes on
	sockoptRefuse  = 0   // the caller gets what bpf_set_retval was told
	loopbackFirst  = 127 // of the four bytes of an IPv4 loopback address
	mappedPrefix   = 0xffff
)

// The offsets of the fields of the maps' values.
const (
	waitingCookie = 0 // struct waiting
	waitingSocket = 8
	waitingProxy  = 16
	pairTarget    = 0 // struct pair
	pairSocket    = 8
	pairStart     = 16
	pairOverTCP   = 20
)

// program collects instructions. A label is put on the instruction that follows it.
type program struct {
	code  asm.Instructions
	label string
}

func (p *program) do(list ...asm.Instruction) {
	for _, in := range list {
		if p.label != "" {
			in = in.WithSymbol(p.label)
			p.label = ""
		}
		p.code = append(p.code, in)
	}
}

func (p *program) at(label string) {
	if p.label != "" { // Two labels for one place.
		p.do(asm.Ja.Label(label))
	}
	p.label = label
}

// exit ends the program with a result.
func (p *program) exit(result int32) { p.do(asm.Mov.Imm(asm.R0, result), asm.Return()) }

// load reads a field of a structure.
func load(to, from asm.Register, at int16, size asm.Size) asm.Instruction {
	return asm.LoadMem(to, from, at, size)
}

// push writes a register to the stack.
func push(at int16, from asm.Register, size asm.Size) asm.Instruction {
	return asm.StoreMem(asm.RFP, at, from, size)
}

// stack points a register at a place on the stack.
func (p *program) stack(to asm.Register, at int32) {
	p.do(asm.Mov.Reg(to, asm.RFP), asm.Add.Imm(to, at))
}

// lookup looks for the key on the stack; R0 points at the value, and without one the program jumps.
func (p *program) lookup(m mapFD, key int32, missing string) {
	p.do(asm.LoadMapPtr(asm.R1, m.FD()))
	p.stack(asm.R2, key)
	p.do(asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, missing))
}

// update stores a value of the stack in a map.
func (p *program) update(m mapFD, key, value int32) {
	p.do(asm.LoadMapPtr(asm.R1, m.FD()))
	p.stack(asm.R2, key)
	p.stack(asm.R3, value)
	p.do(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// remove removes the key on the stack from a map.
func (p *program) remove(m mapFD, key int32) {
	p.do(asm.LoadMapPtr(asm.R1, m.FD()))
	p.stack(asm.R2, key)
	p.do(asm.FnMapDeleteElem.Call())
}

// mapFD is a map that a program refers to.
type mapFD interface{ FD() int }

// send is the program of a sender's socket (sk_msg): what is sent goes straight to where the peer reads, unless some of
// the stream has gone over TCP before or the peer is behind with reading. That decision is for the rest of the
// connection: bytes of the direct way are read before those of TCP, so that the order holds for one change, not two.
func send(m *maps, l layout) asm.Instructions {
	const cookie, queued = -8, -16
	p := &program{}
	p.do(
		asm.Mov.Reg(asm.R6, asm.R1),
		load(asm.R1, asm.R6, msgSocket, asm.DWord),
		asm.FnSkcToTcpSock.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		load(asm.R1, asm.R7, l.cookie, asm.DWord),
		push(cookie, asm.R1, asm.DWord),
	)
	p.lookup(m.pairs, cookie, "pass")
	p.do(
		asm.Mov.Reg(asm.R8, asm.R0),
		load(asm.R1, asm.R8, pairOverTCP, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "pass"),
		// Closed: the accelerator has ended.
		asm.LoadMapValue(asm.R1, m.closed.FD(), 0),
		load(asm.R1, asm.R1, 0, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "tcp"),
		// Something went over TCP, and may not have been read yet.
		load(asm.R1, asm.R7, l.written, asm.Word),
		load(asm.R2, asm.R8, pairStart, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "tcp"),
		// The peer's socket may be gone, and its memory be something else's: then this reads nonsense, and at worst a
		// connection goes on over TCP.
		load(asm.R3, asm.R8, pairSocket, asm.DWord),
		asm.Add.Imm(asm.R3, int32(l.queued)),
		asm.Mov.Imm(asm.R2, 4),
	)
	p.stack(asm.R1, queued)
	p.do(
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, "tcp"),
		load(asm.R1, asm.RFP, queued, asm.Word),
		asm.JGT.Imm(asm.R1, maxQueued, "tcp"),
		load(asm.R1, asm.R8, pairTarget, asm.DWord),
		push(cookie, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, m.targets.FD()),
	)
	p.stack(asm.R3, cookie)
	p.do(
		asm.Mov.Imm(asm.R4, ingress),
		asm.FnMsgRedirectHash.Call(),
		asm.JEq.Imm(asm.R0, verdictPass, "pass"),
	)
	p.at("tcp")
	p.do(asm.StoreImm(asm.R8, pairOverTCP, 1, asm.Word))
	p.at("pass")
	p.exit(verdictPass)
	return p.code
}

// option runs before setsockopt(2). What cannot be had on the direct way takes the connection back to TCP, as kernel
// TLS, which has to see the bytes; or is refused as by a kernel that does not know it, as SO_ZEROCOPY, whose
// notifications do not come from a socket in a map even over TCP.
func option(m *maps) asm.Instructions {
	const cookie = -8
	p := &program{}
	p.do(
		asm.Mov.Reg(asm.R6, asm.R1),
		load(asm.R7, asm.R6, sockoptLevel, asm.Word),
		load(asm.R8, asm.R6, sockoptName, asm.Word),
		asm.JEq.Imm(asm.R7, unix.SOL_SOCKET, "socket"),
		asm.JNE.Imm(asm.R7, unix.IPPROTO_TCP, "allow"),
		asm.JEq.Imm(asm.R8, unix.TCP_ULP, "known"),
		asm.Ja.Label("allow"),
	)
	p.at("socket")
	p.do(asm.JNE.Imm(asm.R8, unix.SO_ZEROCOPY, "allow"))
	p.at("known")
	p.do(
		load(asm.R2, asm.R6, sockoptSocket, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.marks.FD()),
		asm.JEq.Imm(asm.R2, 0, "allow"),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.JEq.Imm(asm.R7, unix.SOL_SOCKET, "refuse"),
		load(asm.R1, asm.R0, 0, asm.DWord),
		push(cookie, asm.R1, asm.DWord),
	)
	p.lookup(m.pairs, cookie, "allow")
	p.do(asm.StoreImm(asm.R0, pairOverTCP, 1, asm.Word))
	p.at("allow")
	p.exit(sockoptAllow)
	p.at("refuse")
	p.do(asm.Mov.Imm(asm.R1, -int32(unix.EOPNOTSUPP)), asm.FnSetRetval.Call())
	p.exit(sockoptRefuse)
	return p.code
}
