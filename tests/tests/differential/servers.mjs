// Node's own server: lists each request in a file, and tells the client what it counted. Arguments: "strict", or
// "lenient" for --insecure-http-parser; the file.
import { createHash } from 'node:crypto'
import { openSync, writeSync } from 'node:fs'
import http from 'node:http'

const [parser, file] = process.argv.slice(2)
const list = openSync(file, 'w')
const options = { insecureHTTPParser: parser === 'lenient', keepAliveTimeout: 300_000, requestTimeout: 0 }
const server = http.createServer(options, (request, response) => {
  const pieces = []
  request.on('data', piece => pieces.push(piece))
  request.on('error', () => {})
  request.on('end', () => {
    const body = Buffer.concat(pieces)
    const target = Buffer.from(request.url, 'latin1')
    const digest = createHash('sha256').update(`${request.method} `).update(target).update('\n').update(body).digest('hex')
    writeSync(list, `${digest} ${request.method} ${JSON.stringify(request.url)} ${body.length}\n`)
    response.writeHead(200, { 'X-Seen': digest, 'Content-Length': 0 })
    response.end()
  })
})
server.listen(0, '127.0.0.1', () => console.log(`port ${server.address().port}`))
