package announce

// port is a link with its open wire.
type port struct {
	link Link
	wire Wire
	done chan struct{} // closed when nobody is to be told any more
}

// heard is a frame, or with a nil frame the end of a wire.
type heard struct {
	port  *port
	frame *Frame
	err   error
}

// leave closes a port that this node is not to be heard by any more.
func (p *port) leave() {
	_ = p.wire.Listen(nil) // the worst is a group too many, until the daemon is stopped
	p.close()
}

// close closes a port; what the kernel does by itself goes on.
func (p *port) close() {
	close(p.done)
	p.wire.Close()
}

// read passes on what comes, until the wire ends or nobody listens.
func (p *port) read(to chan<- heard) {
	for {
		f, err := p.wire.Receive()
		h := heard{port: p, frame: &f}
		if err != nil {
			h.frame, h.err = nil, err
		}
		select {
		case to <- h:
		case <-p.done:
			return
		}
		if err != nil {
			return
		}
	}
}
