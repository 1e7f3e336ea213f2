import Fastify from 'fastify'
import answer from './answer.js'

const app = Fastify({ logger: false })
app.get('/*', async (request) => answer(request.raw.url))
await app.listen({ port: Number(process.env.PORT), host: process.env.HOST })
