// Runs http-cache-tests (https://cache-tests.fyi) through a forward proxy: node run.mjs FOLDER PROXY-URL
//
// FOLDER is the package as published or a checkout of it. Its site and its client are used as they are; what is here
// listens on loopback, hands them a fetch that asks the proxy, and prints {id: {kind, passed, why}} as JSON.

import { existsSync } from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const folder = path.resolve(process.argv[2])
const proxy = new URL(process.argv[3])
const output = process.stdout
// Stdout is for the result.
console.log = console.error

// Checkouts have the engine in a folder of its own.
const engine = existsSync(path.join(folder, 'test-engine')) ? 'test-engine' : '.'
const load = (...names) => import(pathToFileURL(path.join(folder, ...names)))

const handlers = {}
for (const what of ['config', 'state', 'test']) {
  handlers[what] = (await load(engine, 'server', `handle-${what}.mjs`)).default
}
const site = http.createServer((request, response) => {
  const [what, ...rest] = new URL(request.url, 'http://site').pathname.slice(1).split('/')
  handlers[what](rest, request, response)
})
await new Promise(resolve => site.listen(0, '127.0.0.1', resolve))
const base = `http://127.0.0.1:${site.address().port}`

const agent = new http.Agent({ keepAlive: true })

// A fetch (https://fetch.spec.whatwg.org) without a cache of its own, which takes what the tests answer with, status 999
// included. Its requests have the absolute form (RFC 9112 section 3.2.2).
function fetchByProxy (url, init = {}) {
  const headers = Object.fromEntries(new Headers(init.headers))
  headers.host = new URL(url).host
  if (init.body !== undefined) headers['content-length'] = Buffer.byteLength(init.body)
  const method = init.method ?? 'GET'
  // The client's own dispatcher collects interim answers.
  if (init.dispatcher) return byDispatcher(init.dispatcher, { origin: proxy.origin, path: url, method, headers })
  return new Promise((resolve, reject) => {
    const { hostname, port } = proxy
    const request = http.request({ hostname, port, path: url, method, headers, agent, signal: init.signal }, response => {
      const chunks = []
      response.on('data', chunk => chunks.push(chunk)).on('error', reject).on('end', () => {
        const fields = new Headers()
        for (let i = 0; i < response.rawHeaders.length; i += 2) {
          fields.append(response.rawHeaders[i], response.rawHeaders[i + 1])
        }
        resolve(answer(response.statusCode, response.statusMessage, fields, Buffer.concat(chunks).toString()))
      })
    })
    request.on('error', reject).end(init.body)
  })
}

async function byDispatcher (dispatcher, request) {
  const { statusCode, headers, body } = await dispatcher.request(request)
  const fields = Object.entries(headers).flatMap(([name, values]) => [values].flat().map(value => [name, value]))
  return answer(statusCode, '', new Headers(fields), await body.text())
}

const answer = (status, statusText, headers, body) => ({ status, statusText, headers, text: async () => body })

// The tests for content delivery networks are about fields which no forward proxy heeds.
const suites = (await load('tests', 'index.mjs')).default.filter(suite => !suite.id.startsWith('cdn'))
const { runTests, getResults } = await load(engine, 'client', 'runner.mjs')
// All at a time: most of them wait for something to become stale.
const together = 1000
if (runTests.length > 3) {
  await runTests(suites, fetchByProxy, false, base, together)
} else {
  globalThis.fetch = fetchByProxy
  await runTests(suites, false, base, together)
}

const results = getResults()
const tests = new Map(suites.flatMap(suite => suite.tests).map(test => [test.id, test]))
// What a test builds on must have passed too.
const passed = id => results[id] === true && (tests.get(id).depends_on ?? []).every(passed)
const lines = Object.keys(results).map(id => {
  const why = results[id] === true ? 'what it depends on failed' : results[id].join(': ')
  return [id, { kind: tests.get(id).kind ?? 'required', passed: passed(id), why: passed(id) ? '' : why }]
})
output.write(JSON.stringify(Object.fromEntries(lines)) + '\n', () => process.exit())
