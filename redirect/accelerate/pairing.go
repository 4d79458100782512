package accelerate

import (
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The places on the stack of the program pair.
const (
	atKey     = -24 // struct handshake
	atValue   = -48 // struct waiting, or struct pair
	atCookie  = -56 // a key of sockets or of pairs
	atWaiting = -80 // a copy of struct waiting
)

// pair runs when a connection is established at either end (sockops). The end that called comes first: it leaves its
// name under the sequence numbers of the handshake, which both ends know whatever was translated between them. The
// other end finds it there, and which of the two is the proxy's.
//
// Registers: R6 context, R7 scratch, R8 struct tcp_sock, R9 cookie of the socket.
func pair(c Config, m *maps, l layout) asm.Instructions {
	p := &program{}
	p.do(
		asm.Mov.Reg(asm.R6, asm.R1),
		load(asm.R7, asm.R6, opsOp, asm.Word),
		asm.JEq.Imm(asm.R7, opActive, "new"),
		asm.JEq.Imm(asm.R7, opPassive, "new"),
		asm.JNE.Imm(asm.R7, opState, "end"),
		load(asm.R7, asm.R6, opsNewState, asm.Word),
		asm.JNE.Imm(asm.R7, stateClose, "end"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetSocketCookie.Call(),
		push(atCookie, asm.R0, asm.DWord),
	)
	p.remove(m.pairs, atCookie)
	p.do(asm.Ja.Label("end"))
	p.at("new")
	p.do(asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetNetnsCookie.Call(), push(atKey, asm.R0, asm.DWord))
	p.lookup(m.namespaces, atKey, "end")
	p.do(
		// TCP Fast Open: bytes are on their way already.
		load(asm.R1, asm.R6, opsSegmentsIn, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "end"),
		load(asm.R1, asm.R6, opsSegmentsOut, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "end"),
		load(asm.R1, asm.R6, opsSocket, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "end"),
		asm.FnSkcToTcpSock.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.Mov.Reg(asm.R8, asm.R0),
	)
	if l.multipath != 0 {
		p.do(load(asm.R1, asm.R8, l.multipath, asm.Byte), asm.JNE.Imm(asm.R1, 0, "end"))
	}
	p.do(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetSocketCookie.Call(),
		asm.Mov.Reg(asm.R9, asm.R0),
		load(asm.R1, asm.R6, opsOp, asm.Word),
		asm.JEq.Imm(asm.R1, opPassive, "passive"),
	)
	active(p, c, m, l)
	passive(p, c, m, l)
	p.at("end")
	p.exit(1)
	return p.code
}

// active is the end that called.
func active(p *program, c Config, m *maps, l layout) {
	p.do(
		load(asm.R1, asm.R8, l.mark, asm.Word),
		asm.And.Imm(asm.R1, int32(c.Mask)),
		asm.Mov.Imm(asm.R7, 1),
		asm.JEq.Imm32(asm.R1, int32(c.Mark), "where"),
		asm.Mov.Imm(asm.R7, 0),
		load(asm.R1, asm.R6, opsRemotePort, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
	)
	for _, port := range c.Ports {
		p.do(asm.JEq.Imm(asm.R1, int32(port), "plain"))
	}
	p.at("where")
	where(p)
	p.at("near")
	p.do(asm.JEq.Imm(asm.R7, 0, "end"), asm.Ja.Label("eligible")) // Between others, or from the proxy to its workload.
	p.at("far")
	p.do(asm.JEq.Imm(asm.R7, 1, "end")) // From the proxy to the network, or captured.
	p.at("plain")
	p.noZeroCopy(l)
	p.at("eligible")
	p.do(
		// The key.
		load(asm.R1, asm.R6, opsSendNext, asm.Word),
		push(atKey+8, asm.R1, asm.Word),
		load(asm.R1, asm.R6, opsReceiveNext, asm.Word),
		push(atKey+12, asm.R1, asm.Word),
		load(asm.R1, asm.R6, opsLocalPort, asm.Word),
		push(atKey+16, asm.R1, asm.DWord),
		// The value.
		push(atValue+waitingCookie, asm.R9, asm.DWord),
		push(atValue+waitingSocket, asm.R8, asm.DWord),
		push(atValue+waitingProxy, asm.R7, asm.DWord),
		push(atCookie, asm.R9, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "client"),
	)
	p.enter(m.targets)
	p.do(asm.Ja.Label("wait"))
	p.at("client")
	p.enterSender(m)
	p.at("wait")
	p.update(m.waiting, atKey, atValue)
	p.do(asm.Ja.Label("end"))
}

// where tells by the addresses whether a connection stays in its namespace, unless it was captured: "near" has a loopback
// address at one end or the same at both, everything else is "far". This is only so that sockets without a peer here
// are spared the way through the maps; what the peer is, the other end finds out.
func where(p *program) {
	p.do(
		load(asm.R1, asm.R6, opsFamily, asm.Word),
		asm.JNE.Imm(asm.R1, unix.AF_INET, "six"),
	)
	p.at("four")
	p.do(
		load(asm.R1, asm.R6, opsRemote4, asm.Word),
		load(asm.R2, asm.R6, opsLocal4, asm.Word),
		asm.JEq.Reg(asm.R1, asm.R2, "near"),
	)
	for _, end := range []asm.Register{asm.R1, asm.R2} {
		p.do(asm.HostTo(asm.BE, end, asm.Word), asm.RSh.Imm(end, 24), asm.JEq.Imm(end, loopbackFirst, "near"))
	}
	p.do(asm.Ja.Label("far"))
	p.at("six")
	p.do(asm.JNE.Imm(asm.R1, unix.AF_INET6, "end"))
	for _, end := range []struct {
		at   int16
		next string
	}{{opsRemote6, "local"}, {opsLocal6, "own"}} {
		p.do(
			load(asm.R1, asm.R6, end.at, asm.Word),
			load(asm.R2, asm.R6, end.at+4, asm.Word),
			asm.Or.Reg(asm.R1, asm.R2),
			asm.JNE.Imm(asm.R1, 0, end.next),
			load(asm.R1, asm.R6, end.at+8, asm.Word),
			asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.JEq.Imm(asm.R1, mappedPrefix, "four"), // ::ffff:a.b.c.d
			asm.JEq.Imm(asm.R1, 0, "near"),            // ::1, and ::6 from where the proxy calls
		)
		p.at(end.next)
	}
	for word := int16(0); word < 16; word += 4 {
		p.do(
			load(asm.R1, asm.R6, opsRemote6+word, asm.Word),
			load(asm.R2, asm.R6, opsLocal6+word, asm.Word),
			asm.JNE.Reg(asm.R1, asm.R2, "far"),
		)
	}
	p.do(asm.Ja.Label("near"))
}

// passive is the end that was called.
func passive(p *program, c Config, m *maps, l layout) {
	p.at("passive")
	p.do(
		load(asm.R1, asm.R6, opsReceiveNext, asm.Word),
		push(atKey+8, asm.R1, asm.Word),
		load(asm.R1, asm.R6, opsSendNext, asm.Word),
		push(atKey+12, asm.R1, asm.Word),
		load(asm.R1, asm.R6, opsRemotePort, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		push(atKey+16, asm.R1, asm.DWord),
	)
	p.lookup(m.waiting, atKey, "end")
	p.do(
		load(asm.R1, asm.R0, waitingCookie, asm.DWord),
		push(atWaiting+waitingCookie, asm.R1, asm.DWord),
		load(asm.R1, asm.R0, waitingSocket, asm.DWord),
		push(atWaiting+waitingSocket, asm.R1, asm.DWord),
		load(asm.R7, asm.R0, waitingProxy, asm.DWord),
	)
	p.remove(m.waiting, atKey)
	p.do(push(atCookie, asm.R9, asm.DWord), load(asm.R1, asm.R6, opsLocalPort, asm.Word))
	for _, port := range c.Ports {
		p.do(asm.JEq.Imm(asm.R1, int32(port), "served"))
	}
	p.do(asm.JEq.Imm(asm.R7, 0, "end")) // Neither end is the proxy's.
	// The proxy called: this end sends to it.
	p.noZeroCopy(l)
	p.enterSender(m)
	p.do(
		load(asm.R1, asm.RFP, atWaiting+waitingCookie, asm.DWord),
		push(atValue+pairTarget, asm.R1, asm.DWord),
		load(asm.R1, asm.RFP, atWaiting+waitingSocket, asm.DWord),
		push(atValue+pairSocket, asm.R1, asm.DWord),
		load(asm.R1, asm.R6, opsSendNext, asm.Word),
		push(atValue+pairStart, asm.R1, asm.DWord), // OverTCP is 0.
		asm.Ja.Label("pair"),
	)
	p.at("served")
	p.do(asm.JNE.Imm(asm.R7, 0, "end")) // Both ends are.
	p.enter(m.targets)
	p.do(
		push(atValue+pairTarget, asm.R9, asm.DWord),
		push(atValue+pairSocket, asm.R8, asm.DWord),
		load(asm.R1, asm.R6, opsReceiveNext, asm.Word),
		push(atValue+pairStart, asm.R1, asm.DWord),
		load(asm.R1, asm.RFP, atWaiting+waitingCookie, asm.DWord),
		push(atCookie, asm.R1, asm.DWord),
	)
	p.at("pair")
	p.update(m.pairs, atCookie, atValue)
}

// noZeroCopy ends the program for a socket with SO_ZEROCOPY.
func (p *program) noZeroCopy(l layout) {
	p.do(
		load(asm.R1, asm.R8, l.flags, asm.DWord),
		asm.RSh.Imm(asm.R1, l.flagZeroCopy),
		asm.And.Imm(asm.R1, 1),
		asm.JNE.Imm(asm.R1, 0, "end"),
	)
}

// enter puts the socket into a map of sockets, under its cookie.
func (p *program) enter(m mapFD) {
	p.do(asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, m.FD()))
	p.stack(asm.R3, atCookie)
	p.do(asm.Mov.Imm(asm.R4, 0), asm.FnSockHashUpdate.Call())
}

// enterSender makes the socket one whose sends are looked at, and has its end told.
func (p *program) enterSender(m *maps) {
	p.enter(m.senders)
	p.do(
		load(asm.R2, asm.R6, opsCallbacks, asm.Word),
		asm.Or.Imm(asm.R2, callbackState),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnSockOpsCbFlagsSet.Call(),
		load(asm.R2, asm.R6, opsSocket, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "end"),
		asm.LoadMapPtr(asm.R1, m.marks.FD()),
	)
	p.stack(asm.R3, atCookie)
	p.do(asm.Mov.Imm(asm.R4, storageCreate), asm.FnSkStorageGet.Call())
}
